"""ControlNet: no effect at the start, residuals of several add up, files that diffusers loads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from probes import perturb

from modules.batch import Batch, DenoiserInputs
from networks.controlnet import ControlNet


def make_inputs(batch_size: int = 2) -> tuple[DenoiserInputs, Batch]:
    generator = torch.Generator().manual_seed(3)
    inputs = DenoiserInputs(
        sample=torch.randn(batch_size, 4, 8, 8, generator=generator),
        timestep=torch.full((batch_size,), 500),
        encoder_hidden_states=torch.randn(batch_size, 16, 32, generator=generator),
    )
    images = torch.rand(batch_size, 3, 32, 32, generator=generator)
    return inputs, Batch(captions=[""] * batch_size, extras={"control": images})


def make(model, **options) -> ControlNet:
    network = ControlNet(**options)
    network.attach(model)
    return network


@torch.no_grad()
def predict(model, *networks, inputs=None) -> torch.Tensor:
    given, batch = make_inputs()
    inputs = inputs or given
    for network in networks:
        inputs = network.condition(inputs, batch)
    return model.denoise(inputs)


def test_a_new_one_changes_nothing_and_learns():
    model = tiny.make_sd()
    model.denoiser.requires_grad_(False)
    network = make(model)
    assert torch.equal(predict(model, network), predict(model))
    inputs, batch = make_inputs()
    model.denoise(network.condition(inputs, batch)).square().mean().backward()
    moved = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved
    assert all("controlnet_down_blocks" in n or "controlnet_mid_block" in n for n in moved)
    assert all(p.grad is None for p in model.denoiser.parameters())


def test_it_is_a_copy_of_the_unet():
    model = tiny.make_sd()
    own, base = make(model).net.state_dict(), model.denoiser.state_dict()
    shared = [key for key in own if key in base]
    assert "mid_block.attentions.0.proj_in.weight" in shared
    assert all(torch.equal(own[key], base[key]) for key in shared)


def test_the_residuals_of_two_add_up():
    model = tiny.make_sd()
    first, second = make(model), make(model)
    perturb(first, scale=0.05)
    perturb(second, scale=0.07)
    inputs, batch = make_inputs()
    with torch.no_grad():
        both = second.condition(first.condition(inputs, batch), batch).residuals
        one = first.condition(inputs, batch).residuals
        other = second.condition(inputs, batch).residuals
    assert torch.allclose(
        both["mid_block_additional_residual"],
        one["mid_block_additional_residual"] + other["mid_block_additional_residual"],
    )
    key = "down_block_additional_residuals"
    for total, a, b in zip(both[key], one[key], other[key], strict=True):
        assert torch.allclose(total, a + b)
    assert not torch.equal(predict(model, first, second), predict(model, first))


def test_the_multiplier_scales_what_is_added():
    model = tiny.make_sd()
    network = make(model)
    perturb(network, scale=0.05)
    inputs, batch = make_inputs()
    with torch.no_grad():
        whole = network.condition(inputs, batch).residuals["mid_block_additional_residual"]
        network.multiplier = 0.5
        half = network.condition(inputs, batch).residuals["mid_block_additional_residual"]
    assert torch.allclose(half, whole / 2)


def test_global_average_pooling_adds_one_value_everywhere():
    model = tiny.make_sd()
    network = make(model, global_average_pooling=True)
    perturb(network, scale=0.05)
    inputs, batch = make_inputs()
    with torch.no_grad():
        residuals = network.condition(inputs, batch).residuals
    assert residuals["mid_block_additional_residual"].shape[2:] == (1, 1)
    assert predict(model, network).shape == inputs.sample.shape
    assert not torch.equal(predict(model, network), predict(model))


@pytest.mark.parametrize("pooling", [False, True])
def test_diffusers_pipeline_draws_the_same_with_the_saved_directory(tmp_path, pooling):
    model = tiny.make_sd()
    base = tiny.save_sd(tmp_path / "base")
    network = make(model, global_average_pooling=pooling)
    perturb(network, scale=0.05)
    network.save(tmp_path / "net", dtype=torch.float32, metadata={"ss_steps": "3"})
    theirs = ControlNetModel.from_pretrained(tmp_path / "net", dtype=torch.float32)
    inputs, batch = make_inputs(1)
    with torch.no_grad():
        down, mid = theirs(
            inputs.sample,
            inputs.timestep,
            inputs.encoder_hidden_states,
            batch.extras["control"],
            return_dict=False,
        )
        ours = network.condition(inputs, batch).residuals
    assert torch.allclose(mid, ours["mid_block_additional_residual"], atol=1e-6)
    for a, b in zip(down, ours["down_block_additional_residuals"], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    plain = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline = StableDiffusionControlNetPipeline.from_pipe(plain, controlnet=theirs)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a cat", batch.extras["control"], num_inference_steps=1, width=32, height=32
    ).images[0]
    assert image.size == (32, 32)


def test_resume_takes_weights_and_pooling_of_a_directory(tmp_path):
    model = tiny.make_sd()
    first = make(model, global_average_pooling=True)
    perturb(first, scale=0.05)
    first.save(tmp_path / "net", dtype=torch.float32, metadata={})
    second = make(model)
    second.load(tmp_path / "net")
    assert torch.equal(predict(model, second), predict(model, first))
    third = make(model, global_average_pooling=False)
    third.load(tmp_path / "net")
    assert not torch.equal(predict(model, third), predict(model, first))


def test_files_of_another_model_are_refused(tmp_path):
    other = tiny.make_sd(sd2=True)
    make(other).save(tmp_path / "net", dtype=torch.float32, metadata={})
    with pytest.raises(ValueError, match="another kind of model"):
        make(tiny.make_sd()).load(tmp_path / "net")
    with pytest.raises(ValueError, match=r"no config\.json"):
        make(tiny.make_sd()).load(tmp_path)


def test_a_dataset_without_pictures_is_refused():
    with pytest.raises(ValueError, match=r"control: image"):
        ControlNet().check_extras({"control": torch.zeros(768)})


def test_the_guide_has_the_name_that_is_given():
    model = tiny.make_sd()
    network = make(model, guide="depth")
    assert network.requires == ("depth",)
    inputs, batch = make_inputs()
    renamed = replace(batch, extras={"depth": batch.extras["control"]})
    assert network.condition(inputs, renamed).residuals


def test_a_directory_that_lacks_a_tensor_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny.make_sd()
    network = make(model)
    network.save(tmp_path / "net", dtype=torch.float32, metadata={})
    file = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no whole ControlNet, it has no conv_in\.weight"):
        network.load(tmp_path / "net")
