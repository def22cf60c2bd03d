"""Devices, dtypes, modes and attention kernels."""

from __future__ import annotations

import pytest
import tiny
import torch

import main
from modules.batch import DenoiserInputs
from modules.engine import create_accelerator, prepare_modules, set_attention
from modules.errors import ConfigError
from modules.models.autoencoder import Autoencoder
from networks.base import Adapter
from networks.lora import LoRA


def prepared(*, mixed_precision: str = "no", checkpointing: bool = False, trained: str = ""):
    model, network = tiny.make_sd(), LoRA(rank=2, targets=("unet", "text_encoders"))
    network.attach(model)
    model.vae.requires_grad_(False)
    for name, component in model.components().items():
        component.requires_grad_(name == trained)
    prepare_modules(
        model,
        {"lora": network},
        device=torch.device("cpu"),
        mixed_precision=mixed_precision,
        gradient_checkpointing=checkpointing,
    )
    return model, network


@pytest.mark.parametrize(
    ("mixed_precision", "frozen", "vae"),
    [
        ("no", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16, torch.float32),  # a VAE overflows in float16
    ],
)
def test_what_is_frozen_takes_the_compute_dtype(mixed_precision, frozen, vae):
    model, network = prepared(mixed_precision=mixed_precision, trained="text_encoders.0")
    assert model.denoiser.dtype == frozen
    assert model.vae.dtype == vae
    assert model.text_encoders[0].module.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert model.text_encoders[0].module.training
    assert not model.denoiser.training


@pytest.mark.parametrize(
    ("mixed_precision", "trained", "dtype"),
    [
        ("no", "", None),
        ("bf16", "", torch.bfloat16),
        ("fp16", "text_encoders.0", torch.float16),
        ("bf16", "unet", None),
    ],
)
def test_a_frozen_denoiser_computes_in_its_own_dtype(mixed_precision, trained, dtype):
    model, _ = prepared(mixed_precision=mixed_precision, trained=trained)
    assert model.denoiser_dtype == dtype


def test_a_network_that_does_not_follow_the_dtype_keeps_autocast(monkeypatch):
    monkeypatch.delattr(Adapter, "follows_dtype")
    model, _ = prepared(mixed_precision="bf16")
    assert model.denoiser_dtype is None


def test_the_prediction_is_that_of_autocast_within_bf16():
    torch.manual_seed(0)
    model, _ = prepared(mixed_precision="bf16")
    inputs = DenoiserInputs(
        sample=torch.randn(2, 4, 8, 8),
        timestep=torch.tensor([999, 3]),
        encoder_hidden_states=torch.randn(2, 5, model.denoiser.config.cross_attention_dim),
    )
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        own = model.denoise(inputs).float()
        model.denoiser_dtype = None
        expected = model.denoise(inputs).float()
    assert (own - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_trained_vae_stays_in_float32(mixed_precision):
    model = Autoencoder(tiny.make_sd().vae)
    model.vae.encoder.requires_grad_(False)
    prepare_modules(
        model,
        {},
        device=torch.device("cpu"),
        mixed_precision=mixed_precision,
        gradient_checkpointing=True,
    )
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}  # the encoder's too
    assert model.vae.training
    assert model.vae.is_gradient_checkpointing


def test_text_encoders_are_checkpointed_where_gradients_pass():
    model, _ = prepared(checkpointing=True)
    assert model.denoiser.is_gradient_checkpointing
    assert model.text_encoders[0].module.training  # an adapter works on it
    assert model.text_encoders[0].module.is_gradient_checkpointing


def test_xformers_without_cuda_falls_back_and_says_so(capfd):
    from modules.console import set_up_logging

    set_up_logging()
    model, _ = prepared()
    before = {type(p) for p in model.denoiser.attn_processors.values()}
    set_attention(model, {}, "xformers")
    if not torch.cuda.is_available():
        assert "xformers can't be used here" in capfd.readouterr().out
        assert {type(p) for p in model.denoiser.attn_processors.values()} == before


@pytest.mark.gpu
def test_xformers_computes_what_sdpa_does():
    model, _ = prepared(mixed_precision="fp16")
    model.denoiser.to("cuda")
    inputs = (
        torch.randn(1, 4, 8, 8, device="cuda").half(),
        torch.tensor([5], device="cuda"),
        torch.randn(1, 16, 32, device="cuda").half(),
    )
    with torch.no_grad():
        plain = model.denoiser(*inputs).sample
        set_attention(model, {}, "xformers")
        assert torch.allclose(model.denoiser(*inputs).sample, plain, atol=1e-2)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_that_shards_the_model_is_refused(write_config, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"{variable} is set.*docs/distributed.md"):
        create_accelerator("no")
    assert main.main([str(write_config())]) == 2
    assert not (tmp_path / "output").exists()
