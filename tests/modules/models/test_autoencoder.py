"""A VAE alone: from a model, from its own directory, without weights, and back to disk."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from modules.models.autoencoder import Autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_model_and_its_vae_give_the_same(model_directory):
    whole = Autoencoder.from_pretrained(str(model_directory))
    alone = Autoencoder.from_pretrained(str(model_directory / "vae"))
    assert list(whole.components()) == list(whole.pieces()) == ["vae"]
    assert (whole.vae_scale_factor, whole.latent_channels) == (4, 4)
    for first, second in zip(whole.vae.parameters(), alone.vae.parameters(), strict=True):
        assert torch.equal(first, second)
    empty = Autoencoder.from_pretrained(str(model_directory), weights=False)
    assert all(parameter.is_meta for parameter in empty.vae.parameters())
    with pytest.raises(ValueError, match="is neither a diffusers model with a VAE nor a VAE's"):
        Autoencoder.from_pretrained(str(model_directory / "tokenizer"))


def test_patterns_name_its_parts(model_directory):
    model = Autoencoder.from_pretrained(str(model_directory), weights=False)
    every = {f"vae.{name}" for name, _ in model.vae.named_parameters()}
    assert set(model.parameters_matching(["vae"])) == every
    decoder = model.parameters_matching(["vae.decoder", "vae.post_quant_conv"])
    encoder = model.parameters_matching(["vae.encoder", "vae.quant_conv"])
    assert set(decoder) | set(encoder) == every
    assert not set(decoder) & set(encoder)
    with pytest.raises(ValueError, match=r"'unet' matches no module; there: vae$"):
        model.parameters_matching(["unet"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_written_as_diffusers_reads_it(model_directory, tmp_path, dtype):
    model = Autoencoder.from_pretrained(str(model_directory))
    model.save_pretrained(tmp_path / "vae", dtype=dtype)
    stored = load_file(tmp_path / "vae" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    again = AutoencoderKL.from_pretrained(tmp_path / "vae", dtype=dtype)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.vae.state_dict()[key].to(dtype))
    kept = {key: value for key, value in model.vae.config.items() if key[0] != "_"}
    assert kept == {key: value for key, value in again.config.items() if key[0] != "_"}
    assert next(model.vae.parameters()).dtype == torch.float32
