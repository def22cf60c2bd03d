"""A LoRA of which ComfyUI says "key not loaded", and that A1111 passes over without a word."""

from __future__ import annotations

import pytest
import tiny
import torch
from consumers import accepted_suffixes, automatic1111, comfyui
from diffusers import UNet2DConditionModel
from interrupted_runs import assemble
from probes import outputs
from safetensors.torch import load_file

import main
from modules.errors import RunError
from networks.lora import LoRA


def make_sdxl(**options):
    """A narrow one with SDXL's own levels and blocks, by which its layers are counted in files."""
    model = tiny.make_sdxl(**options)
    config = {
        **model.denoiser.config,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 2),
        "attention_head_dim": (2, 4, 4),
    }
    model.denoiser = UNet2DConditionModel.from_config(config)
    return model


MAKERS = {"sd1": tiny.make_sd, "sdxl": make_sdxl}
BOTH = ["unet", "text_encoders"]
NETWORKS = {
    "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": BOTH}},
    "locon": {"module": "networks.lora.LoRA", "args": {"rank": 2, "conv_rank": 2}},
    "loha": {"module": "networks.loha.LoHa", "args": {"rank": 2, "targets": BOTH}},
    "lokr": {"module": "networks.lokr.LoKr", "args": {"rank": 2, "targets": BOTH}},
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("family", MAKERS)
def test_every_key_is_one_that_other_programs_find_a_layer_for(
    write_config, tmp_path, capfd, family, kind
):
    base = tiny.save_sd(tmp_path / "base", make=MAKERS[family])
    path = write_config(networks={"one": NETWORKS[kind]}, model={"path": str(base)})
    assert main.main([str(path)]) == 0
    layers: dict[str, set[str]] = {}
    tensors = load_file(tmp_path / "output/run/run.safetensors")
    for key in tensors:
        layer, _, own = key.partition(".")
        layers.setdefault(layer, set()).add(own)
    assert set(layers) <= comfyui(family)
    assert all(automatic1111(family, layer) for layer in layers)
    assert all(accepted_suffixes(own) for own in layers.values())
    assert f"verified: {len(tensors)}/{len(tensors)} keys" in capfd.readouterr().out


def test_the_file_changes_the_model_as_training_did(write_config, model_directory, tmp_path):
    lora = {"one": NETWORKS["lora"]}
    trainer = assemble(write_config(networks=lora, train={"learning_rate": 0.1}))
    trainer.train()
    loaded = tiny.make_sd()
    plain = outputs(loaded)
    network = LoRA(rank=2, targets=BOTH)
    network.attach(loaded)
    network.load(trainer.directory / "run.safetensors")
    for own, other, before in zip(outputs(trainer.model), outputs(loaded), plain, strict=True):
        assert torch.allclose(own, other, atol=1e-5)
        assert not torch.allclose(own, before, atol=1e-3)


@pytest.mark.parametrize("fault", ["name", "number"])
def test_a_file_that_is_not_what_was_trained_is_not_kept(write_config, monkeypatch, fault):
    from safetensors.torch import save_file

    trainer = assemble(write_config(networks={"one": NETWORKS["lora"]}))
    save = LoRA.save

    def spoil(self, path, **options):
        save(self, path, **options)
        tensors = load_file(path)
        key = next(key for key in tensors if key.endswith("lora_down.weight"))
        tensor = tensors.pop(key)
        if fault == "name":
            tensors[f"unet.{key}"] = tensor
        else:
            tensors[key] = tensor * 1.5
        save_file(tensors, path)

    monkeypatch.setattr(LoRA, "save", spoil)
    # Beside `save` stands `verify`, as where a class of one's own takes only one of them over.
    monkeypatch.setattr(LoRA, "verify", LoRA.verify)
    with pytest.raises(RunError, match="is not what was trained, so it was not kept"):
        trainer.train()
    assert not list(trainer.directory.glob("*.safetensors"))
