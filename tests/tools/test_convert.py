"""Each form into the other and back: bit by bit the same, and read by those it is for."""

from __future__ import annotations

import hashlib
import json

import pytest
import tiny
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from foreign_adapters import twin, write_lycoris
from probes import outputs, perturb
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import assert_equal
from variants import EVERYTHING

from modules.models import load
from modules.models.published import published_model
from modules.safetensors_header import hash_legacy, hash_tensors, read_header
from networks.hypernetwork import Hypernetwork
from networks.keys import kohya_name
from networks.lora import LoRA
from networks.pfg import PFG
from tools.convert import convert, main

PREFIXES = {"unet": "lora_unet", "text_encoders.0": "lora_te1", "text_encoders.1": "lora_te2"}


def header(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def write_lora(model, file, **options):
    """A LoRA of ours with ranks and alphas of its own in parts of the model."""
    blocks = {"unet.up_blocks": {"rank": 2, "alpha": 3}}
    network = LoRA(**{"rank": 4, "alpha": 2, "targets": EVERYTHING, "blocks": blocks, **options})
    network.attach(model)
    perturb(network)
    expected = outputs(model)
    network.save(file, dtype=torch.float32, metadata=network.describe(model))
    network.detach()
    return expected


@pytest.mark.parametrize(
    ("make", "pipeline"),
    [(tiny.make_sd, StableDiffusionPipeline), (tiny.make_sdxl, StableDiffusionXLPipeline)],
    ids=["sd", "sdxl"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"conv_rank": 3}, {"conv_rank": 3, "dora": "output", "targets": ("unet",)}],
    ids=["lora", "locon", "dora"],
)
def test_diffusers_computes_the_same_from_peft_names(make, pipeline, options, tmp_path):
    directory = tiny.save_sd(tmp_path / "model", make=make)
    model = load(str(directory))
    plain = outputs(model)
    ours = write_lora(model, tmp_path / "kohya.safetensors", **options)
    convert(
        tmp_path / "kohya.safetensors",
        tmp_path / "peft.safetensors",
        to="peft",
        model=str(directory),
    )
    theirs = pipeline.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    theirs.load_lora_weights(tmp_path / "peft.safetensors")
    model.denoiser, model.text_encoders[0].module = theirs.unet, theirs.text_encoder
    if make is tiny.make_sdxl:
        model.text_encoders[1].module = theirs.text_encoder_2
    found = outputs(model)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in zip(ours, found, strict=True))
    for mine, base in zip(ours, plain, strict=True):
        assert (mine - base).abs().max() > 1e-3 or "targets" in options
    assert (ours[1] - plain[1]).abs().max() > 1e-3
    told = header(tmp_path / "peft.safetensors")
    assert told["ss_network_module"] == header(tmp_path / "kohya.safetensors")["ss_network_module"]
    config = json.loads(told["lora_adapter_metadata"])
    assert config["unet.use_dora"] == ("dora" in options)


@pytest.mark.parametrize("make", [tiny.make_sd, tiny.make_sdxl], ids=["sd", "sdxl"])
def test_an_adapter_goes_there_and_back_bit_by_bit(make, tmp_path):
    """Of LyCORIS' full preset, with ranks and alphas of each layer."""
    directory = tiny.save_sd(tmp_path / "model", make=make)
    model, prefixes = load(str(directory)), dict(PREFIXES)
    if make is tiny.make_sd:
        prefixes["text_encoders.0"] = "lora_te"
    original = make is tiny.make_sdxl
    first = write_lycoris(
        model, tmp_path / "a.safetensors", "locon", prefixes=prefixes, original=original
    )
    before = first.read_bytes()
    paths = [first, *(tmp_path / f"{name}.safetensors" for name in "bc")]
    convert(paths[0], paths[1], to="peft", model=str(directory))
    convert(paths[1], paths[2], model=str(directory))
    assert_equal(load_file(paths[2]), load_file(first))
    assert first.read_bytes() == before
    told = header(paths[2])
    assert told["ss_base_model_version"] == ("sdxl_base_v1-0" if original else "sd_v1")
    assert told["ss_network_dim"] == "Dynamic"
    assert "lora_adapter_metadata" not in told


REAL = {
    "sd1": ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 768),
    "sd2": ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 1024),
    "sdxl": ("lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k", 1280, 2048),
    "text": ("lora_te_text_model_encoder_layers_11_self_attn_q_proj", 768, 768),
    "text sdxl": ("lora_te2_text_model_encoder_layers_31_mlp_fc1", 5120, 1280),
}


@pytest.mark.parametrize("name", REAL)
def test_names_of_published_models_need_no_base(name, tmp_path):
    layer, outs, ins = REAL[name]
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(4, ins),
        f"{layer}.lora_up.weight": torch.randn(outs, 4),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"ss_output_name": "mine"})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="peft")
    found = load_file(tmp_path / "b.safetensors")
    path = {
        "sd1": "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "sd2": "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "sdxl": "unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_k",
        "text": "text_encoder.text_model.encoder.layers.11.self_attn.q_proj",
        "text sdxl": "text_encoder_2.text_model.encoder.layers.31.mlp.fc1",
    }[name]
    assert set(found) == {f"{path}.lora_A.weight", f"{path}.lora_B.weight"}
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to="kohya")
    assert_equal(load_file(tmp_path / "c.safetensors"), tensors)
    assert header(tmp_path / "c.safetensors")["ss_output_name"] == "mine"


@pytest.mark.parametrize(("name", "count"), [("sd1", 350), ("sd2", 416), ("sdxl", 1046)])
def test_every_layer_of_a_published_model_goes_there_and_back(name, count, tmp_path):
    model, tensors = published_model(name), {}
    for path, base in model.adapter_layers(EVERYTHING, conv=True).items():
        layer, (outs, *ins) = kohya_name(model, path), base.weight.shape
        tensors[f"{layer}.lora_down.weight"] = torch.randn(1, *ins)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(outs, *(1 for _ in ins))
        tensors[f"{layer}.alpha"] = torch.tensor(0.5)
    assert len(tensors) == 3 * count
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="peft")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert_equal(load_file(tmp_path / "c.safetensors"), tensors)


@pytest.mark.parametrize("options", [{"to": "peft"}, {"dtype": "fp16"}], ids=["names", "dtype"])
def test_hashes_are_those_of_the_new_file(options, tmp_path):
    model = str(tiny.save_sd(tmp_path / "model"))
    source, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(load(model), source)
    convert(source, output, model=model, **options)
    assert header(output)["sshs_model_hash"] == hash_tensors(output)
    assert header(output)["sshs_legacy_hash"] == hash_legacy(output, read_header(output))
    assert header(output)["sshs_model_hash"] != header(source)["sshs_model_hash"]


def test_containers(tmp_path):
    model = tiny.make_sd()
    write_lora(model, tmp_path / "a.safetensors")
    for before, after in (("a.safetensors", "b.pt"), ("b.pt", "c.safetensors")):
        convert(tmp_path / before, tmp_path / after)
    assert_equal(load_file(tmp_path / "c.safetensors"), load_file(tmp_path / "a.safetensors"))
    convert(tmp_path / "a.safetensors", tmp_path / "half.safetensors", dtype="fp16")
    half = load_file(tmp_path / "half.safetensors")
    assert {t.dtype for k, t in half.items() if not k.endswith("alpha")} == {torch.float16}
    assert {t.dtype for k, t in half.items() if k.endswith("alpha")} == {torch.float32}
    told = {"sshs_model_hash": hash_tensors(tmp_path / "half.safetensors")}
    assert header(tmp_path / "half.safetensors") == header(tmp_path / "a.safetensors") | told
    pfg = PFG(input_size=12, num_tokens=2)
    pfg.attach(model)
    pfg.save(tmp_path / "pfg.safetensors", dtype=torch.float32, metadata={})
    convert(tmp_path / "pfg.safetensors", tmp_path / "pfg.pt")
    again = PFG(input_size=12)
    again.attach(model)
    again.load(tmp_path / "pfg.pt")
    assert_equal(again.state_dict(), pfg.state_dict())


def test_embeddings(tmp_path):
    vectors = torch.randn(2, 768)
    told = {"name": "cat", "step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": "model"}
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, **told}
    torch.save(content, tmp_path / "cat.pt")
    convert(tmp_path / "cat.pt", tmp_path / "cat.safetensors")
    assert_equal(load_file(tmp_path / "cat.safetensors"), {"emb_params": vectors})
    assert header(tmp_path / "cat.safetensors")["ti_token"] == "cat"
    convert(tmp_path / "cat.safetensors", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert torch.equal(again.pop("string_to_param")["*"], vectors)
    assert again == {"string_to_token": {"*": 265}, **told}
    save_file({"<cat>": vectors[0]}, tmp_path / "diffusers.safetensors")  # as diffusers names it
    convert(tmp_path / "diffusers.safetensors", tmp_path / "diffusers.pt")
    found = torch.load(tmp_path / "diffusers.pt", weights_only=True)
    assert torch.equal(found["string_to_param"]["*"], vectors[:1])
    both = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    save_file(both, tmp_path / "xl.safetensors")
    convert(tmp_path / "xl.safetensors", tmp_path / "xl.pt")
    convert(tmp_path / "xl.pt", tmp_path / "xl again.safetensors")
    assert_equal(load_file(tmp_path / "xl again.safetensors"), both)


@pytest.mark.parametrize("make", [tiny.make_sd, tiny.make_sdxl], ids=["sd", "sdxl"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_whole_models(make, dtype, tmp_path):
    """There and back; the precision is kept."""
    directory = tiny.save_sd(tmp_path / "model", make=make)
    convert(directory, tmp_path / "a.safetensors", dtype=dtype)
    convert(tmp_path / "a.safetensors", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "b.safetensors")
    assert_equal(load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "a.safetensors"))
    if dtype == "fp32":
        before, after = (outputs(load(str(path))) for path in (directory, tmp_path / "back"))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert header(tmp_path / "a.safetensors")["modelspec.title"] == "a"


def test_what_a_model_says_of_itself_goes_with_it(tmp_path):
    directory = tiny.save_sd(tmp_path / "model")
    told = {"ss_steps": "3", "modelspec.title": "猫", "sd_trainer.config": "model: cat"}
    (directory / "sd_trainer.json").write_text(json.dumps(told), encoding="utf-8")
    convert(directory, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "back")
    assert header(tmp_path / "a.safetensors").items() >= told.items()
    beside = json.loads((tmp_path / "back" / "sd_trainer.json").read_text("utf-8"))
    assert beside.items() >= told.items()
    assert not [key for key in beside if key.startswith(("sshs_", "sd_trainer.configs", "format"))]


def test_controlnets_and_checkpoints(tmp_path, model_directory):
    net = ControlNetModel.from_unet(twin(load(str(model_directory))).denoiser)
    net.save_pretrained(tmp_path / "net")
    convert(tmp_path / "net", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.pth")
    with pytest.raises(ValueError, match="give the base model that the ControlNet is for"):
        convert(tmp_path / "a.pth", tmp_path / "back")


def test_a_hypernetwork_has_one_form(tmp_path):
    network = Hypernetwork()
    network.attach(tiny.make_sd())
    network.save(tmp_path / "a.pt", dtype=torch.float32, metadata={})
    with pytest.raises(ValueError, match="a hypernetwork, which programs read"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")


def test_a_piece_of_a_model_is_no_controlnet(tmp_path, model_directory):
    with pytest.raises(ValueError, match=r"holds AutoencoderKL, .* save\.format: single_file"):
        convert(model_directory / "vae", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds UNet2DConditionModel, for which"):
        convert(model_directory / "unet", tmp_path / "a.safetensors")


class Note:
    """Something that is no tensor, as training programs leave in their checkpoints."""


def test_a_checkpoint_with_code(tmp_path, model_directory):
    convert(model_directory, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors, "note": Note()}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert_equal(load_file(tmp_path / "b.safetensors"), tensors)


def test_the_command(tmp_path, capsys):
    write_lora(tiny.make_sd(), tmp_path / "a.safetensors")
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).digest()

    def call(source, output, *options) -> tuple[int, str]:
        status = main([str(tmp_path / source), "-o", str(tmp_path / output), *options])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    status, shown = call("a.safetensors", "a.pt")
    assert status == 0
    assert "tensors" in shown
    for source, output, options, words in (
        ("a.safetensors", "a.pt", (), "exists already; give another name"),
        ("a.safetensors", "b.safetensors", (), "has kohya's names already; --to peft gives the"),
        ("a.safetensors", "b.safetensors", ("--to", "peft"), "text embeddings of 32 numbers, whi"),
        ("a.safetensors", "b", (), "this is written as a file; end its name with .safetensors"),
        ("none", "b.pt", (), "no such file or directory"),
    ):
        status, shown = call(source, output, *options)
        assert status == 2
        assert words in shown
    assert hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).digest() == digest
    assert not [*tmp_path.glob("b*")]


@pytest.mark.parametrize("kind", ["locon", "locon-dora", "loha"])
def test_peft_reads_its_directories(kind, tmp_path):
    from peft import PeftModel

    directory = tiny.save_sd(tmp_path / "model")
    model = load(str(directory))
    plain, theirs = outputs(model), twin(model)
    options = {"weight_decompose": True} if kind.endswith("dora") else {}
    file = write_lycoris(model, tmp_path / "a.safetensors", kind.partition("-")[0], **options)
    convert(file, tmp_path / "peft", to="peft", model=directory)
    for piece, module in (
        ("unet", theirs.denoiser),
        ("text_encoder", theirs.text_encoders[0].module),
    ):
        PeftModel.from_pretrained(module, tmp_path / "peft" / piece)
    for mine, found, base in zip(outputs(model), outputs(theirs), plain, strict=True):
        assert (mine - base).abs().max() > 1e-2
        assert torch.allclose(mine, found, atol=1e-5, rtol=1e-5)
    convert(tmp_path / "peft", tmp_path / "b.safetensors", model=directory)
    back, first = load_file(tmp_path / "b.safetensors"), load_file(file)
    assert_equal(back, {key: tensor.float() for key, tensor in first.items()})
    told = header(tmp_path / "b.safetensors")
    assert told["ss_network_module"] == ("networks.lora" if kind == "locon" else "lycoris.kohya")
    if kind == "locon-dora":
        assert json.loads(told["ss_network_args"])["wd_on_output"] == "True"


def test_what_peft_has_no_form_for_is_said(tmp_path, caplog):
    directory = tiny.save_sd(tmp_path / "model")
    write_lora(load(str(directory)), tmp_path / "dora.safetensors", dora="output")
    convert(tmp_path / "dora.safetensors", tmp_path / "d.safetensors", to="peft", model=directory)
    assert "diffusers 0.42 leaves out the magnitudes of text encoders" in caplog.text
    for name, words in (("loha", "is a LoHa; diffusers reads LoRA only"), ("locon", None)):
        options = {"weight_decompose": True, "wd_on_out": False} if words is None else {}
        path = write_lycoris(tiny.make_sd(), tmp_path / f"{name}.safetensors", name, **options)
        with pytest.raises(ValueError, match=words or "has magnitudes of input channels, which"):
            convert(path, tmp_path / "out.safetensors", to="peft", model=str(directory))
    tensors = {
        "lora_unet_mid_block_attentions_0_add_k_proj.lora_down.weight": torch.zeros(2, 8),
        "lora_unet_mid_block_attentions_0_add_k_proj.lora_up.weight": torch.zeros(8, 2),
    }
    save_file(tensors, tmp_path / "if.safetensors")
    with pytest.raises(ValueError, match="is for DeepFloyd IF; give a model of it with --model"):
        convert(tmp_path / "if.safetensors", tmp_path / "out.safetensors", to="peft")
