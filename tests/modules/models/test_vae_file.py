"""VAEs in one file: in both layouts, out of a whole model, with the scale of the model's own."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from modules import models
from modules.models.autoencoder import Autoencoder
from modules.models.full_file import save_single_file
from modules.models.original_names import pack, vae_places
from modules.models.pieces import load_vae


@pytest.fixture
def vae():
    torch.manual_seed(7)
    return tiny.make_sd(seed=7).vae


def equal(ours, theirs) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def original(vae, prefix: str = "") -> dict[str, torch.Tensor]:
    tensors = vae.state_dict()
    packed = pack(tensors, vae_places(vae, tensors))
    return {prefix + name: tensor for name, tensor in packed.items()}


@pytest.mark.parametrize("layout", ["original", "with a prefix", "diffusers"])
def test_a_vae_file_replaces_the_models_own(tmp_path, model_directory, vae, layout):
    tensors = {
        "original": original(vae),
        "with a prefix": original(vae, "first_stage_model."),
        "diffusers": vae.state_dict(),
    }[layout]
    save_file(tensors, tmp_path / "vae.safetensors")
    own = models.load(str(model_directory))
    model = models.load(str(model_directory), vae=str(tmp_path / "vae.safetensors"))
    assert equal(model.vae, vae)
    assert not equal(model.vae, own.vae)
    assert model.vae.config.scaling_factor == own.vae.config.scaling_factor == 0.5
    assert not model.vae.training


def test_a_pickled_vae_with_its_loss_is_read(tmp_path, model_directory, vae):
    content = {**original(vae), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": content}, tmp_path / "vae.pt")
    model = models.load(str(model_directory), vae=str(tmp_path / "vae.pt"))
    assert equal(model.vae, vae)


def test_the_vae_of_a_whole_file_serves(tmp_path, model_directory):
    other = models.load(str(tiny.save_sd(tmp_path / "other", seed=5)))
    save_single_file(other, tmp_path / "other.safetensors", dtype=torch.float32)
    assert equal(load_vae(str(tmp_path / "other.safetensors")), other.vae)
    model = models.load(str(model_directory), vae=str(tmp_path / "other.safetensors"))
    assert equal(model.vae, other.vae)


def test_without_weights_a_vae_stays_on_meta(tmp_path, model_directory, vae):
    save_file(original(vae), tmp_path / "vae.safetensors")
    path = str(tmp_path / "vae.safetensors")
    model = models.load(str(model_directory), vae=path, weights=False)
    assert all(parameter.is_meta for parameter in model.vae.parameters())


def test_a_single_file_with_another_vae_is_saved_with_it(tmp_path, vae):
    whole = models.load(str(tiny.save_sd(tmp_path / "model")))
    save_single_file(whole, tmp_path / "model.safetensors", dtype=torch.float32)
    save_file(original(vae), tmp_path / "vae.safetensors")
    model = models.load(str(tmp_path / "model.safetensors"), vae=str(tmp_path / "vae.safetensors"))
    assert equal(model.vae, vae)
    save_single_file(model, tmp_path / "again.safetensors", dtype=torch.float32)
    assert equal(models.load(str(tmp_path / "again.safetensors")).vae, vae)


def test_a_vae_alone_is_written_and_read_again(tmp_path, vae):
    whole = Autoencoder(vae)
    whole.save_single_file(tmp_path / "vae.safetensors", dtype=torch.float32, metadata={})
    loaded = load_vae(str(tmp_path / "vae.safetensors"))
    assert equal(loaded, vae)
    assert loaded.config.scaling_factor == vae.config.scaling_factor
    names = load_file(tmp_path / "vae.safetensors").keys()
    assert names == original(vae).keys()


def test_files_without_a_vae_or_of_another_size_are_refused(tmp_path, model_directory, vae):
    save_file({"lora_unet_x.alpha": torch.tensor(1.0)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"lora\.safetensors: holds no VAE of Stable Diffusion"):
        load_vae(str(tmp_path / "lora.safetensors"))
    save_file(original(vae), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"vae\.safetensors: .*(incomplete|has shape)"):
        load_vae(str(tmp_path / "vae.safetensors"))  # alone it counts as one of the real size
    with pytest.raises(ValueError, match=r"gone\.safetensors: no such file"):
        models.load(str(model_directory), vae=str(tmp_path / "gone.safetensors"))
