"""Files of PEFT and diffusers, written and computed by their own code, resumed here."""

from __future__ import annotations

import json

import pytest
import tiny
import tiny_if
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from foreign_adapters import randomize, twin, with_peft
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict
from probes import outputs
from safetensors.torch import load_file, save_file

from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA
from networks.peft_files import HEADER, Scales

KINDS = {
    "lora": (LoRA, LoraConfig, {}),
    "lora-rs": (LoRA, LoraConfig, {"use_rslora": True}),
    "dora": (LoRA, LoraConfig, {"use_dora": True}),
    "loha": (LoHa, LoHaConfig, {}),
    "loha-effective": (LoHa, LoHaConfig, {"use_effective_conv2d": True}),
    "lokr": (LoKr, LoKrConfig, {"decompose_factor": 4}),
    "lokr-effective": (LoKr, LoKrConfig, {"decompose_factor": 4, "use_effective_conv2d": True}),
    "lokr-both": (LoKr, LoKrConfig, {"decompose_both": True}),
}


def assert_resumes(network, model, path, expected, plain) -> None:
    network.attach(model)
    network.load(path)
    for ours, theirs, base in zip(outputs(model), expected, plain, strict=True):
        assert (theirs - base).abs().max() > 1e-2
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_directories(kind, tmp_path):
    """One directory for the UNet and one for the text encoder, with ranks and alphas by layer."""
    network, config, options = KINDS[kind]
    model = tiny.make_sd()
    theirs, plain = twin(model), outputs(model)
    for piece, wrapped in with_peft(theirs, config, **options).items():
        wrapped.save_pretrained(tmp_path / piece)
    assert (tmp_path / "unet" / "adapter_config.json").is_file()
    assert_resumes(network(rank=7), model, tmp_path, outputs(theirs), plain)


def test_one_peft_directory_of_each_piece(tmp_path):
    """Whose it is stands in its config, not in its keys."""
    model = tiny.make_sdxl()
    wrapped = with_peft(twin(model), LoraConfig)
    for piece, prefix in (("unet", "lora_unet_"), ("text_encoder_2", "lora_te2_")):
        wrapped[piece].save_pretrained(tmp_path / f"of {piece}")
        network = LoRA()
        network.attach(model)
        network.load(tmp_path / f"of {piece}")
        network.detach()
        filled = {n for n, layer in network.layers.items() if layer.lora_up.weight.any()}
        assert filled
        assert all(name.startswith(prefix) for name in filled)


def save_pipeline(theirs, wrapped, directory, *, metadata=True):
    """As diffusers' training scripts write a LoRA."""
    layers = {p: get_peft_model_state_dict(module) for p, module in wrapped.items()}
    strip = len("base_model.model.")
    arguments = {
        f"{p}_lora_layers": {k[strip:]: v for k, v in s.items()} for p, s in layers.items()
    }
    if metadata:
        arguments |= {
            f"{piece}_lora_adapter_metadata": module.peft_config["default"].to_dict()
            for piece, module in wrapped.items()
        }
    pipeline = StableDiffusionXLPipeline if "text_encoder_2" in wrapped else StableDiffusionPipeline
    pipeline.save_lora_weights(directory, **arguments)
    return directory / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("kind", ["lora", "lora-rs", "dora"])
@pytest.mark.parametrize("make", [tiny.make_sd, tiny.make_sdxl], ids=["sd", "sdxl"])
def test_diffusers_files(kind, make, tmp_path):
    _, config, options = KINDS[kind]
    model = make()
    theirs, plain = twin(model), outputs(model)
    path = save_pipeline(theirs, with_peft(theirs, config, **options), tmp_path)
    assert any(key.startswith("text_encoder.") for key in load_file(path))
    expected = outputs(theirs)
    assert_resumes(LoRA(rank=7), model, path, expected, plain)
    network = LoRA(targets=("text_encoders",))
    assert_resumes(network, make(), tmp_path, expected, plain)  # its directory


def test_a_file_without_configs_is_applied_at_scale_1(tmp_path):
    model = tiny.make_sd()
    wrapped = with_peft(twin(model), LoraConfig)
    path = save_pipeline(model, wrapped, tmp_path, metadata=False)
    network = LoRA()
    network.attach(tiny.make_sd())
    network.load(path)
    assert {layer.scale for layer in network.layers.values()} == {1.0}


OLD = {
    "unet.{}.to_q_lora": "{}.to_q",
    "unet.{}.processor.to_k_lora": "{}.to_k",
    "unet.{}.to_v.lora": "{}.to_v",
    "{}.processor.to_out_lora": "{}.to_out.0",
}


def test_the_forms_of_older_diffusers(tmp_path):
    """The same tensors under all names that there were."""
    model = tiny.make_sd()
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    new, old = {}, {}
    generator = torch.Generator().manual_seed(0)
    for before, now in OLD.items():
        down, up = (torch.randn(32, 4, generator=generator) for _ in range(2))
        new[f"unet.{now.format(block)}.lora_A.weight"] = down.T.contiguous()
        new[f"unet.{now.format(block)}.lora_B.weight"] = up
        old[f"{before.format(block)}.down.weight"] = down.T.contiguous()
        old[f"{before.format(block)}.up.weight"] = up
    text = "encoder.layers.1.self_attn"
    for number, name in enumerate(("q_proj", "out_proj")):
        tail = ".lora_linear_layer" if number else "_lora"
        was = f"text_encoder.text_model.{text}.{name if number else 'to_q'}{tail}"
        down, up = (torch.randn(32, 4, generator=generator) for _ in range(2))
        new[f"text_encoder.{text}.{name}.lora_A.weight"] = down.T.contiguous()
        new[f"text_encoder.{text}.{name}.lora_B.weight"] = up
        old |= {f"{was}.down.weight": down.T.contiguous(), f"{was}.up.weight": up}
    found = []
    for name, tensors in (("new.safetensors", new), ("old.bin", old)):
        (save_file if name == "new.safetensors" else torch.save)(tensors, tmp_path / name)
        network, own = LoRA(targets=("unet", "text_encoders")), twin(model)
        network.attach(own)
        network.load(tmp_path / name)
        assert sum(bool(layer.lora_up.weight.any()) for layer in network.layers.values()) == 6
        found.append(outputs(own))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_deepfloyd_if(tmp_path):
    """Its attention has layers of other names, its text encoder is T5."""
    model, theirs = tiny_if.make_if(), tiny_if.make_if()
    names = ["to_q", "add_k_proj", "add_v_proj", "to_out.0"]
    theirs.denoiser.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=names))
    own = {n: p for n, p in theirs.denoiser.named_parameters() if "lora" in n}
    randomize(own)
    tensors = {f"unet.{k}": v for k, v in get_peft_model_state_dict(theirs.denoiser).items()}
    header = {f"unet.{k}": v for k, v in {"r": 4, "lora_alpha": 2}.items()}
    path = tmp_path / "if.safetensors"
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})
    network = LoRA()
    network.attach(model)
    network.load(path)
    call = {
        "sample": torch.randn(1, 3, 16, 16),
        "timestep": 10,
        "encoder_hidden_states": torch.randn(1, 5, 24),
    }
    with torch.no_grad():
        ours, expected = (m.denoiser(**call).sample for m in (model, theirs))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_scales_are_found_as_peft_finds_them():
    scales = Scales(
        rank=4,
        alpha=8,
        ranks={"mid.*to_q": 2},
        alphas={"to_k": 3, "^down.0.to_q": 5},
    )
    assert scales.of("mid.0.to_q", None) == 4.0
    assert scales.of("up.to_k", 4) == 0.75
    assert scales.of("up.not_to_k", 4) == 2.0
    assert scales.of("down.0.to_q", 4) == 1.25
    assert Scales(rank=4, alpha=8, rank_stabilized=True).of("x", 16) == 2.0
    assert Scales().of("x", 5) == 1.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: is PEFT's IA3; only LoRA, LoHa and LoKr"),
        ({"init_lora_weights": "pissa_niter_4"}, "was begun with init_lora_weights pissa_niter_4"),
        ({}, "has adapter_config.json, but no adapter_model.safetensors"),
        ([], "is no config of an adapter"),
        ("{", "is no JSON"),
        (None, "is a directory without adapter_config.json"),
    ],
)
def test_directories_that_cant_be_read(config, words, tmp_path):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "adapter_config.json").write_text(text)
    if config:
        save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    network = LoRA()
    network.attach(tiny.make_sd())
    with pytest.raises(ValueError, match=words):
        network.load(tmp_path)
