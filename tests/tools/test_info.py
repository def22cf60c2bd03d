"""`tools/info.py` tells files of all programs apart, and says what they say of themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import ControlNetModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from modules.config import load
from modules.models.full_file import save_single_file
from modules.trainer import Trainer
from tools.file_kinds import SD1, SD2, SDXL
from tools.info import info, main, show

ROOT = Path(__file__).resolve().parents[2]
TEXT_KEY = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def written(path, tensors, metadata=None):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def only(path, **options):
    (found,) = info(path, **options)
    return found


def lora(width=768, *, name=CROSS, rank=4):
    return {
        f"{name}.lora_down.weight": torch.zeros(rank, width, dtype=torch.float16),
        f"{name}.lora_up.weight": torch.zeros(320, rank, dtype=torch.float16),
        f"{name}.alpha": torch.tensor(2.0, dtype=torch.float16),
    }


CONVOLUTION = {
    "lora_unet_conv_in.lora_down.weight": torch.zeros(8, 4, 3, 3),
    "lora_unet_conv_in.lora_up.weight": torch.zeros(320, 8, 1, 1),
    "lora_unet_conv_in.alpha": torch.tensor(1.5, dtype=torch.bfloat16),
}
LOHA = {f"{CROSS}.hada_w{n}_{x}": torch.zeros(6, 6) for n in (1, 2) for x in "ab"}
LOKR = {
    f"{CROSS}.lokr_w1": torch.zeros(8, 8),
    f"{CROSS}.lokr_w2_a": torch.zeros(40, 5),
    f"{CROSS}.lokr_w2_b": torch.zeros(5, 96),
}
PEFT = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.zeros(
        4, 2048
    ),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": torch.zeros(
        320, 4
    ),
}


@pytest.mark.parametrize(
    ("tensors", "kind", "family", "ranks", "alphas"),
    [
        (lora(), "LoRA", SD1, {"4": 1}, {"2": 1}),
        (lora(1024), "LoRA", SD2, {"4": 1}, {"2": 1}),
        (lora(2048), "LoRA", SDXL, {"4": 1}, {"2": 1}),
        (lora(name=TEXT_KEY), "LoRA", SD1, {"4": 1}, {"2": 1}),
        ({**lora(), **CONVOLUTION}, "LoCon", SD1, {"4": 1, "8": 1}, {"2": 1, "1.5": 1}),
        (
            {**lora(), f"{CROSS}.dora_scale": torch.ones(1, 768)},
            "DoRA of LoRA",
            SD1,
            {"4": 1},
            {"2": 1},
        ),
        (LOHA, "LoHa", None, {"6": 1}, {}),
        (LOKR, "LoKr", SD1, {"5": 1}, {}),
        (PEFT, "LoRA", SDXL, {"4": 1}, {}),
        ({f"{CROSS}.oft_blocks": torch.zeros(2, 4, 4)}, "OFT or BOFT", None, {}, {}),
        (
            {f"{CROSS}.diff": torch.zeros(4, 4)},
            "made of whole changes of weights (algo full)",
            None,
            {},
            {},
        ),
    ],
)
def test_adapters_of_all_programs(tmp_path, tensors, kind, family, ranks, alphas):
    found = only(written(tmp_path / "a.safetensors", tensors)).contents
    assert (found.kind, found.family) == (kind, family)
    assert (dict(found.ranks), dict(found.alphas)) == (ranks, alphas)
    assert found.form == ("PEFT's" if tensors is PEFT else "kohya's")


@pytest.mark.parametrize(
    ("tensors", "kind", "family"),
    [
        ({"emb_params": torch.zeros(2, 768)}, "textual inversion", SD1),
        ({"<cat>": torch.zeros(1024)}, "textual inversion", SD2),
        (
            {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)},
            "textual inversion",
            SDXL,
        ),
        ({"pfg_linear.weight": torch.zeros(8, 4), "pfg_linear.bias": torch.zeros(8)}, "PFG", None),
        (
            {"control_model.zero_convs.0.0.weight": torch.zeros(1)},
            "ControlNet in the original layout",
            None,
        ),
        ({"decoder.conv_in.weight": torch.zeros(1), "encoder.a": torch.zeros(1)}, "VAE", None),
        ({"lllite_unet_a.cond_emb.weight": torch.zeros(1)}, "ControlNet-LLLite", None),
        ({"something.weight": torch.zeros(1), "else.weight": torch.zeros(1)}, "unknown", None),
    ],
)
def test_what_is_no_adapter(tmp_path, tensors, kind, family):
    found = only(written(tmp_path / "a.safetensors", tensors)).contents
    assert (found.kind, found.family) == (kind, family)


@pytest.mark.parametrize(
    ("make", "options", "family"),
    [(tiny.make_sd, {}, SD1), (tiny.make_sd, {"sd2": True}, SD2), (tiny.make_sdxl, {}, SDXL)],
)
def test_whole_models(tmp_path, make, options, family):
    model = make(**options)
    save_single_file(model, tmp_path / "a.safetensors", dtype=torch.float16)
    found = only(tmp_path / "a.safetensors")
    assert (found.contents.kind, found.contents.family) == ("whole model", family)
    save_file({k: torch.zeros(1) for k in []}, tmp_path / "empty.safetensors")
    assert only(tmp_path / "empty.safetensors").contents.kind == "unknown"
    model.save_pretrained(tmp_path / "folder", dtype=torch.float32)
    folder = only(tmp_path / "folder")
    assert folder.contents.kind == f"{model.pipeline} as a directory of diffusers"
    pieces = [model.denoiser, model.vae, *(each.module for each in model.text_encoders)]
    assert folder.parameters == sum(p.numel() for piece in pieces for p in piece.parameters())


def test_directories_of_networks(tmp_path):
    ControlNetModel.from_unet(tiny.make_sd().denoiser).save_pretrained(tmp_path / "control")
    assert only(tmp_path / "control").contents.kind == "ControlNetModel as a directory of diffusers"
    (tmp_path / "tokens").mkdir()
    for token in ("cat", "dog"):
        written(tmp_path / "tokens" / f"{token}.safetensors", {"emb_params": torch.zeros(1, 768)})
    assert [Path(each.path).name for each in info(tmp_path / "tokens")] == [
        "cat.safetensors",
        "dog.safetensors",
    ]


def test_pickles(tmp_path):
    torch.save(lora(), tmp_path / "lora.pt")
    assert only(tmp_path / "lora.pt").contents.alphas == {"2": 1}
    pairs = ({"linear.0.weight": torch.zeros(768, 768)},) * 2
    torch.save({768: pairs, "step": 10}, tmp_path / "hyper.pt")
    found = only(tmp_path / "hyper.pt")
    assert (found.contents.kind, found.contents.family) == ("hypernetwork", SD1)
    assert found.parameters == 2 * 768 * 768
    embedding = {"string_to_param": {"*": torch.zeros(3, 768)}, "name": "cat"}
    torch.save(embedding, tmp_path / "ti.pt")
    assert only(tmp_path / "ti.pt").contents.kind == "textual inversion"


def test_what_peft_writes(tmp_path):
    unet = tiny.make_sd().denoiser
    unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=["to_k"]))
    unet.save_lora_adapter(tmp_path)
    found = only(tmp_path)
    assert (found.contents.kind, found.contents.form) == ("LoRA", "PEFT's")
    assert list(found.contents.ranks) == ["3"]
    assert list(found.contents.alphas) == ["6"]


def test_folders_of_peft(tmp_path):
    model = tiny.make_sd()
    for piece, module in (
        ("text_encoder", model.text_encoders[0].module),
        ("unet", model.denoiser),
    ):
        targets = ["to_k", "k_proj"]
        get_peft_model(
            module, LoraConfig(r=3, lora_alpha=6, target_modules=targets)
        ).save_pretrained(tmp_path / piece)
    found = info(tmp_path)
    assert [Path(each.path).parent.name for each in found] == ["text_encoder", "unet"]
    assert [list(each.contents.alphas) for each in found] == [["6"], ["6"]]


KOHYA = {  # of a file by sd-scripts
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_sd_model_name": "sdxl.safetensors",
    "ss_steps": "1600",
    "ss_epoch": "10",
    "ss_learning_rate": "0.0001",
    "ss_clip_skip": "None",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
    "ss_tag_frequency": json.dumps({"10_a": {"cat": 20, " hat": 4}, "1_b": {"cat": 1}}),
    "sshs_model_hash": "0" * 64,
    "sshs_legacy_hash": "12345678",
}


def test_metadata_of_others(tmp_path):
    found = only(written(tmp_path / "a.safetensors", lora(), KOHYA))
    assert (found.contents.family, found.contents.family_source) == (SDXL, "metadata")
    assert found.settings["steps"] == "1600"
    assert "clip skip" not in found.settings
    assert found.tags == [("cat", 21), ("hat", 4)]
    assert found.hashes == {"sshs_model_hash": False, "sshs_legacy_hash": False}
    assert found.receipt is None
    assert "DOES NOT FIT" in show(found)
    assert only(tmp_path / "a.safetensors", check=False).hashes == {}


def test_tags_of_several_datasets(tmp_path):
    datasets = [{"tag_frequency": {"a": {"cat": 2}}}, {"tag_frequency": {"b": {"cat": 3}}}]
    metadata = {"ss_datasets": json.dumps(datasets), "modelspec.trigger_phrase": "sks"}
    found = only(written(tmp_path / "a.safetensors", lora(), metadata))
    assert (found.tags, found.trigger_words) == ([("cat", 5)], ["sks"])


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"a": 1}', '{"a": {"b": "c"}}'])
def test_metadata_that_is_none_is_no_error(tmp_path, text):
    metadata = {"ss_tag_frequency": text, "lora_adapter_metadata": text, "ss_datasets": text}
    found = only(written(tmp_path / "a.safetensors", PEFT, metadata))
    assert [tag for tag, count in found.tags if count] == []


def test_a_file_of_ours_says_all(write_config, capsys):
    networks = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 3, "alpha": 1}}}
    trainer = Trainer.from_config(
        load(write_config(networks=networks), "dataset.args.trigger_word=sks")
    )
    trainer.train()
    path = trainer.directory / "run.safetensors"
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    for line in ("LoRA, keys as kohya's", "Stable Diffusion 1.x (by its metadata)"):
        assert line in text
    for word in ("sks", "a red cat (4)", "17 files of the dataset (listed)", "0.001"):
        assert word in text
    assert text.count("... fits") == 3
    assert main([str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["contents"]["ranks"] == {"3": 48}
    assert found["metadata"]["ss_steps"] == "2"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of the last tensor
    path.write_bytes(content)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.count("DOES NOT FIT") == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.safetensors", None, "no such file or directory"),
        ("a.safetensors", b"no such file at all", "can't be read as .safetensors"),
        ("a.pt", b"no pickle", "can't be read ("),
    ],
)
def test_files_that_cannot_be_read(tmp_path, capsys, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_an_empty_directory(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has no weights in it" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_that_cannot_be_read_leaves_the_others_described(tmp_path, capsys, options):
    path = written(tmp_path / "a.safetensors", lora())
    missing = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    assert main([*options, *map(str, (missing[0], path, missing[1]))]) == 2
    told = capsys.readouterr()
    assert "LoRA" in told.out
    assert str(path) in told.out
    assert [line.partition(": ")[0] for line in told.err.splitlines()] == [*map(str, missing)]


def test_headers_are_read_without_torch(tmp_path):
    path = written(tmp_path / "a.safetensors", lora(), KOHYA)
    script = f"from tools.info import main; main([{str(path)!r}]); import sys; "
    script += "print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "False", run.stderr
