"""Whole models that are read again: every family, as a directory and as one file."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file

DTYPES = {torch.float32: 0.0, torch.float16: 5e-4, torch.bfloat16: 4e-3}
WITH_FILES = [name for name in FAMILIES if name != "if"]


def trained(family: str, *parts: str):
    """A model of which these components are trained."""
    model = FAMILIES[family].make()
    for name, module in model.components().items():
        module.requires_grad_(name.startswith(parts))
    if model.vae is not None:
        model.vae.requires_grad_(False)
    return model


@pytest.mark.parametrize("parts", [("unet",), ("unet", "text_encoders")], ids=["unet", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_is_what_was_trained(family, parts, tmp_path):
    model = trained(family, *parts)
    for dtype, tolerance in DTYPES.items():
        model.save_pretrained(tmp_path, dtype=dtype)
        verified = model.verify_pretrained(tmp_path, dtype=dtype)
        files = list(tmp_path.rglob("*.safetensors"))
        assert verified.keys == sum(len(load_file(file)) for file in files)
        assert verified.max_error <= tolerance


@pytest.mark.parametrize("family", WITH_FILES)
def test_one_file_is_what_was_trained(family, tmp_path):
    model = trained(family, "unet", "text_encoders")
    path = tmp_path / "model.safetensors"
    for dtype, tolerance in DTYPES.items():
        model.save_single_file(path, dtype=dtype, metadata={})
        verified = model.verify_single_file(path, dtype=dtype)
        assert verified.keys == len(load_file(path))
        assert verified.max_error <= tolerance


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_every_trained_tensor_of_one_file_counts(family, tmp_path):
    """OpenCLIP's queries, keys and values are thirds of one tensor: each third is looked at."""
    model = trained(family, "unet", "text_encoders")
    path = tmp_path / "model.safetensors"
    model.save_single_file(path, dtype=torch.float32, metadata={})
    whole = load_file(path)
    stack = next(key for key in whole if key.endswith("0.attn.in_proj_weight"))
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    rows = len(whole[stack])
    for key, place in ((stack, 0), (stack, rows // 2), (stack, rows - 1), (unet, 1)):
        changed = whole[key].clone()
        changed[place].view(-1)[0] += 0.5
        save_file({**whole, key: changed}, path)
        with pytest.raises(ValueError, match=rf"^{key}: is \S+ in the file where \S+ was trained"):
            model.verify_single_file(path, dtype=torch.float32)


def test_names_of_one_file_are_matched(tmp_path):
    model = trained("sd1", "unet")
    path = tmp_path / "model.safetensors"
    model.save_single_file(path, dtype=torch.float16, metadata={})
    whole = load_file(path)
    vae = "first_stage_model.decoder.conv_in.weight"
    for tensors, message in (
        ({k: t for k, t in whole.items() if k != vae}, f"{vae}: was to be written, and is missing"),
        ({**whole, "model_ema.decay": torch.ones(1)}, "model_ema.decay: was written, and should"),
        ({**whole, vae: whole[vae][..., :1].clone()}, f"{vae}: has shape"),
        ({**whole, vae: whole[vae].float()}, f"{vae}: is torch.float32 in the file, not"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=f"^{message}"):
            model.verify_single_file(path, dtype=torch.float16)
