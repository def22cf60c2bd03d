"""Base models in one file, both ways, with the quirks of old files, and without the network."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from families import FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import assert_equal, rewrite

from modules import models
from modules.batch import Batch
from modules.models.fingerprint import hash_tokenizer
from modules.models.full_file import save_single_file

KINDS = ["sd1", "sd2", "sdxl", "sd1_inpainting", "sdxl_inpainting"]
TEXT = "cond_stage_model.transformer.text_model."

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.save_sd(tmp_path / request.param, make=FAMILIES[request.param].make)


def content(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a diffusers directory."""
    return {
        f"{file.parent.name}.{name}": tensor
        for file in directory.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_directory_to_file_to_directory_is_bit_identical(folder, tmp_path, dtype):
    models.load(str(folder)).save_pretrained(tmp_path / "rounded", dtype=dtype)
    file = tmp_path / "model.safetensors"
    save_single_file(models.load(str(tmp_path / "rounded")), file, dtype=dtype)
    models.load(str(file)).save_pretrained(tmp_path / "again", dtype=dtype)
    assert_equal(content(tmp_path / "again"), content(tmp_path / "rounded"))


def test_file_to_file_is_bit_identical(folder, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_single_file(models.load(str(folder)), first, dtype=torch.float16)
    changed = {name: tensor * 2 for name, tensor in load_file(first).items() if "logit" in name}
    rewrite(first, first, add=changed)  # what has no use is carried over, too
    save_single_file(models.load(str(first)), second, dtype=torch.float16)
    assert_equal(load_file(second), load_file(first))


def test_a_loaded_file_is_the_model(folder, tmp_path):
    original = models.load(str(folder))
    save_single_file(original, tmp_path / "model.safetensors", dtype=torch.float32)
    loaded = models.load(str(tmp_path / "model.safetensors"))
    assert type(loaded) is type(original)
    assert loaded.pipeline == original.pipeline
    assert loaded.path == str(tmp_path / "model.safetensors")
    latents, size = torch.randn(1, 4, 8, 8), torch.tensor([[32, 32]])
    batch = Batch(captions=["a red cat"], latents=latents, original_size=size)
    with torch.no_grad():
        ours, theirs = loaded.encode_prompts(batch), original.encode_prompts(batch)
    assert torch.equal(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    assert torch.equal(loaded.encode_images(batch), original.encode_images(batch))
    for own, other in zip(loaded.text_encoders, original.text_encoders, strict=True):
        assert hash_tokenizer(own.tokenizer) == hash_tokenizer(other.tokenizer)
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert loaded.scheduler.config[name] == original.scheduler.config[name]
    assert torch.equal(loaded.scheduler.alphas_cumprod, original.scheduler.alphas_cumprod)
    for module in (*loaded.components().values(), loaded.vae):
        assert not module.training
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
        assert all(buffer.device.type == "cpu" for buffer in module.buffers())


def test_diffusers_reads_our_file(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    save_single_file(models.load(str(folder)), file, dtype=torch.float32)
    original = models.load(str(folder))
    pipeline = getattr(diffusers, original.pipeline).from_single_file(
        str(file), config=str(folder), local_files_only=True, dtype=torch.float32
    )
    for name, piece in original.pieces().items():
        if not name.startswith("tokenizer"):
            assert_equal(getattr(pipeline, name).state_dict(), piece.state_dict())


def test_without_weights_nothing_is_read(sd1_file):
    model = models.load(str(sd1_file), weights=False)
    for module in (*model.components().values(), model.vae):
        assert all(parameter.is_meta for parameter in module.parameters())
    model = models.load(str(sd1_file), weights={"text_encoder"})
    assert not next(model.text_encoders[0].module.parameters()).is_meta
    assert next(model.denoiser.parameters()).is_meta


def test_old_files_with_more_in_them_are_read(sd1_file, tmp_path):
    more = {
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": torch.ones(1000),
        "betas": torch.ones(1000),
        f"{TEXT}embeddings.position_ids": torch.arange(16).half()[None],
    }
    file = rewrite(sd1_file, tmp_path / "old.safetensors", add=more)
    plain, loaded = models.load(str(sd1_file)), models.load(str(file))
    assert_equal(loaded.denoiser.state_dict(), plain.denoiser.state_dict())
    save_single_file(loaded, tmp_path / "new.safetensors", dtype=torch.float32)
    assert_equal(load_file(tmp_path / "new.safetensors"), load_file(sd1_file))


def test_files_of_2022_without_text_model_in_their_names_are_read(sd1_file, tmp_path):
    old = {k.replace(".text_model.", "."): v for k, v in load_file(sd1_file).items()}
    with safe_open(sd1_file, "pt") as opened:
        save_file(old, tmp_path / "old.safetensors", metadata=opened.metadata())
    plain, loaded = models.load(str(sd1_file)), models.load(str(tmp_path / "old.safetensors"))
    ours, theirs = (model.text_encoders[0].module for model in (loaded, plain))
    assert_equal(ours.state_dict(), theirs.state_dict())


def test_a_vae_whose_attention_is_linear_is_read(sd1_file, tmp_path):
    attention = {
        name: tensor[:, :, 0, 0].contiguous()
        for name, tensor in load_file(sd1_file).items()
        if ".attn_1." in name and tensor.dim() == 4
    }
    assert attention
    file = rewrite(sd1_file, tmp_path / "linear.safetensors", add=attention)
    assert_equal(
        models.load(str(file)).vae.state_dict(), models.load(str(sd1_file)).vae.state_dict()
    )
