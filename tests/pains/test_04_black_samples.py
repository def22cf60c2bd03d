"""A VAE in float16 overflows: black samples, and NaN in cached latents."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from modules.engine import prepare_modules
from modules.models.pieces import load_vae
from preprocess.latent import latent, main

HALVES = ("fp16", "bf16")


@pytest.mark.parametrize("precision", HALVES)
def test_the_vae_is_never_in_float16(precision):
    model = tiny.make_sd()
    for component in model.components().values():
        component.requires_grad_(False)
    model.vae.requires_grad_(False)
    prepare_modules(
        model,
        {},
        device=torch.device("cpu"),
        mixed_precision=precision,
        gradient_checkpointing=False,
    )
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert model.denoiser.dtype == half
    assert model.vae.dtype == {"fp16": torch.float32, "bf16": torch.bfloat16}[precision]


def test_training_in_half_precision_does_not_reach_the_vae():
    """Autocast would compute a float32 VAE in half precision."""
    model, seen = tiny.make_sd(), []
    model.vae.decoder.conv_in.register_forward_hook(
        lambda _m, _i, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.decode(torch.randn(1, 4, 8, 8))
    assert seen == [torch.float32]


@pytest.fixture
def dataset(tmp_path):
    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 3})
    for file in (directory / "latents").iterdir():
        file.unlink()
    return directory


def test_latents_are_not_cached_in_float16(dataset, model_directory, capsys):
    with pytest.raises(SystemExit):
        main([str(dataset), "-m", str(model_directory), "--dtype", "fp16"])
    assert "fp16" in capsys.readouterr().err


def test_an_image_whose_latents_are_not_finite_is_named(dataset, model_directory, tmp_path):
    """The VAE is ruined so that it overflows where an image is white."""
    from PIL import Image

    Image.new("RGB", (32, 32), "white").save(dataset / "images" / "image001.png")
    for number in (0, 2):
        Image.new("RGB", (32, 32), "black").save(dataset / "images" / f"image00{number}.png")
    vae = load_vae(str(model_directory))
    with torch.no_grad():
        vae.encoder.conv_in.weight.zero_()[:, 0, 1, 1] = 2e38
        vae.encoder.conv_in.bias.fill_(2e38)  # 0 where it is black, beyond float32 where white
    vae.save_pretrained(tmp_path / "vae")
    result = latent(directory=dataset, model=str(tmp_path / "vae"), dtype="fp32")
    assert result.failed
    assert "image001: its latents are not finite" in " ".join(result.failed)
    for file in (dataset / "latents").glob("*.npy"):
        assert np.isfinite(np.load(file)).all()
    assert not (dataset / "latents" / "image001.npy").exists()
