"""The VAE's loss, term by term in closed form."""

from __future__ import annotations

import sys
import types

import pytest
import tiny
import torch
from torch import nn

from modules.batch import Batch
from modules.component import argument_faults
from modules.errors import RunError
from modules.reconstruction import Reconstruction


class Brightness(nn.Module):
    """The squared difference of the means; its dtypes are kept."""

    def __init__(self, *, factor: float = 1.0, per_channel: bool = False):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.dims = (2, 3) if per_channel else (1, 2, 3)

    def forward(self, images, others):
        self.dtypes = images.dtype, others.dtype
        distance = (images - others).mean(self.dims, keepdim=True).square()
        return self.factor * distance  # (B, 1, 1, 1), as of LPIPS, or (B, 3, 1, 1)


class OneForAll(nn.Module):
    def forward(self, images, others):
        return (images - others).square().mean()


def brightness(**args):
    return {"module": "test_reconstruction_parts.Brightness", "args": args}


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """This file's networks under a dotted path."""
    module = types.ModuleType("test_reconstruction_parts")
    module.Brightness, module.OneForAll = Brightness, OneForAll
    monkeypatch.setitem(sys.modules, "test_reconstruction_parts", module)


@pytest.fixture
def vae():
    return tiny.make_sd().vae.requires_grad_(False)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return Batch(captions=["", ""], pixel_values=torch.rand(2, 3, 16, 24) * 2 - 1)


def given_back(vae, batch):
    """The images as the posterior's mean gives them back."""
    with torch.no_grad():
        return vae.decode(vae.encode(batch.pixel_values).latent_dist.mean).sample


def loss_of(vae, batch, **weights):
    given = {"l1": 0.0, "mse": 0.0, "kl": 0.0, "sample_posterior": False}
    return Reconstruction(**{**given, **weights}).reconstruction_loss(vae, batch)


def test_l1_and_mse_are_means_over_each_image(vae, batch):
    difference = given_back(vae, batch) - batch.pixel_values
    absolute, squared = difference.abs().mean((1, 2, 3)), difference.square().mean((1, 2, 3))
    assert torch.allclose(loss_of(vae, batch, l1=1.0), absolute)
    assert torch.allclose(loss_of(vae, batch, mse=1.0), squared)
    assert torch.allclose(loss_of(vae, batch, l1=0.5, mse=3.0), 0.5 * absolute + 3 * squared)


def test_the_divergence_is_that_of_the_normal_distribution(vae, batch):
    vae.encoder.requires_grad_(True)
    with torch.no_grad():
        posterior = vae.encode(batch.pixel_values).latent_dist
        own = torch.distributions.Normal(posterior.mean, posterior.std)
        standard = torch.distributions.Normal(0.0, 1.0)
        divergence = torch.distributions.kl_divergence(own, standard).sum((1, 2, 3))  # (B,)
    term = loss_of(vae, batch, l1=1.0, kl=2.0) - loss_of(vae, batch, l1=1.0)
    assert torch.allclose(term, 2 * divergence / (3 * 16 * 24), rtol=1e-4)
    assert divergence.min() > 0


def test_without_a_trained_encoder_there_is_no_divergence(vae, batch):
    vae.decoder.requires_grad_(True)
    assert torch.equal(loss_of(vae, batch, l1=1.0, kl=1e3), loss_of(vae, batch, l1=1.0))


def test_a_sample_of_the_posterior_is_decoded(vae, batch):
    vae.encoder.requires_grad_(True)
    torch.manual_seed(3)
    loss = loss_of(vae, batch, mse=1.0, sample_posterior=True)
    torch.manual_seed(3)
    posterior = vae.encode(batch.pixel_values).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape)
    expected = (vae.decode(latents).sample - batch.pixel_values).square().mean((1, 2, 3))
    assert torch.allclose(loss, expected, atol=1e-6)
    assert not torch.allclose(loss, loss_of(vae, batch, mse=1.0))
    loss.sum().backward()
    logvar = vae.quant_conv if vae.quant_conv.weight.requires_grad else vae.encoder.conv_out
    assert logvar.weight.grad[4:].abs().max() > 0  # reparametrised: the variance learns too


def test_a_mask_weighs_the_pixels_below_it(vae, batch):
    mask = torch.zeros(2, 1, 4, 6)
    mask[:, :, :, :3] = 1
    mask[1] *= 0.5
    masked = Batch(captions=batch.captions, pixel_values=batch.pixel_values, mask=mask)
    error = (given_back(vae, batch) - batch.pixel_values).abs()
    left = error[..., :12].sum((1, 2, 3)) / error[0].numel()
    assert torch.allclose(loss_of(vae, masked, l1=1.0), left * torch.tensor([1.0, 0.5]))
    seen = loss_of(vae, masked, perceptual=brightness(factor=2.0))
    difference = (given_back(vae, batch) - batch.pixel_values) * torch.repeat_interleave(
        torch.repeat_interleave(mask, 4, -1), 4, -2
    )
    assert torch.allclose(seen, 2 * difference.mean((1, 2, 3)).square(), rtol=1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_perceptual_distance_is_added(vae, batch, per_channel):
    objective = Reconstruction(
        l1=1.0,
        mse=0.0,
        sample_posterior=False,
        perceptual=brightness(factor=3.0, per_channel=per_channel),
        perceptual_weight=0.5,
    )
    difference = given_back(vae, batch) - batch.pixel_values
    dims = (2, 3) if per_channel else (1, 2, 3)
    distance = difference.mean(dims).square().reshape(2, -1).mean(1)
    expected = difference.abs().mean((1, 2, 3)) + 0.5 * 3 * distance
    assert torch.allclose(objective.reconstruction_loss(vae, batch), expected)
    assert not any(p.requires_grad for p in objective.perceptual.network.parameters())
    vae.decoder.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        objective.reconstruction_loss(vae, batch).sum().backward()
    assert objective.perceptual.network.dtypes == (torch.float32, torch.float32)
    assert vae.decoder.conv_out.weight.grad.abs().max() > 0


def test_one_distance_for_a_whole_batch_is_refused(vae, batch):
    perceptual = {"module": "test_reconstruction_parts.OneForAll"}
    with pytest.raises(RunError) as raised:
        loss_of(vae, batch, perceptual=perceptual)
    assert str(raised.value) == (
        "objective.args.perceptual: test_reconstruction_parts.OneForAll gave shape () for 2 "
        "images; it must give a distance for each"
    )


def test_weights_that_compare_nothing_are_refused():
    for weights in ({"l1": 0, "mse": 0}, {"l1": 0, "mse": 0, "perceptual_weight": 0}):
        with pytest.raises(ValueError, match="l1, mse: both weights are 0, so nothing compares"):
            Reconstruction(**weights)
    faults = argument_faults("objective", "modules.reconstruction.Reconstruction", {"l1": -1})
    assert faults == ["objective.args.l1: -1.0 is out of range; it must be at least 0"]


def test_a_missing_perceptual_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r"lpips is not installed; pip install lpips$"):
        Reconstruction(perceptual={"module": "lpips.LPIPS", "args": {"net": "vgg"}})
