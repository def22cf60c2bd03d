"""Objectives against their closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from modules.objectives import OBJECTIVES, Epsilon, VPrediction, masked_mean


@pytest.fixture
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 4, 8, 6, generator=generator)
    noise = torch.randn(4, 4, 8, 6, generator=generator)
    return clean, noise, torch.tensor([0, 10, 500, 999])


@pytest.mark.parametrize("objective_class", OBJECTIVES.values())
def test_noise_is_added_as_diffusers_does(objective_class, scheduler, drawn):
    clean, noise, timesteps = drawn
    noisy = objective_class(scheduler).add_noise(clean, noise, timesteps)
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, timesteps), atol=1e-6)


def test_epsilon_predicts_the_noise(scheduler, drawn):
    clean, noise, timesteps = drawn
    assert Epsilon(scheduler).target(clean, noise, timesteps) is noise


def test_v_prediction_is_diffusers_velocity(scheduler, drawn):
    clean, noise, timesteps = drawn
    target = VPrediction(scheduler).target(clean, noise, timesteps)
    assert torch.allclose(target, scheduler.get_velocity(clean, noise, timesteps), atol=1e-6)


def test_a_v_prediction_gives_back_the_clean_latents(scheduler, drawn):
    clean, noise, timesteps = drawn
    objective = VPrediction(scheduler)
    noisy = objective.add_noise(clean, noise, timesteps)
    v = objective.target(clean, noise, timesteps)
    alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    recovered = alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * v
    assert torch.allclose(recovered, clean, atol=1e-5)


def test_weights_are_one_without_gamma(scheduler):
    assert torch.equal(Epsilon(scheduler).loss_weight(torch.tensor([0, 999])), torch.ones(2))


@pytest.mark.parametrize(("objective_class", "addend"), [(Epsilon, 0.0), (VPrediction, 1.0)])
def test_min_snr_weights(objective_class, addend, scheduler):
    timesteps = torch.arange(0, 1000, 37)
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    weights = objective_class(scheduler, min_snr_gamma=5.0).loss_weight(timesteps)
    assert torch.allclose(weights, snr.clamp(max=5) / (snr + addend))
    assert weights[0] < weights[10]  # hardly noised timesteps count less


def test_timesteps_stay_in_their_range(scheduler):
    objective = Epsilon(scheduler, timestep_range=(0.25, 0.5))
    timesteps = objective.sample_timesteps(5000, torch.device("cpu"))
    assert timesteps.min() == 250
    assert timesteps.max() == 499


def test_all_timesteps_are_drawn_by_default(scheduler):
    timesteps = Epsilon(scheduler).sample_timesteps(50000, torch.device("cpu"))
    assert timesteps.min() == 0
    assert timesteps.max() == 999


@pytest.mark.parametrize("timestep_range", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.9, 0.1)])
def test_an_empty_or_impossible_range_is_refused(timestep_range, scheduler):
    with pytest.raises(ValueError, match=r"is not a range within 0\.0, 1\.0"):
        Epsilon(scheduler, timestep_range=timestep_range)


def test_noise_offset_shifts_whole_channels(scheduler):
    clean = torch.zeros(64, 4, 16, 16)
    torch.manual_seed(0)
    plain = Epsilon(scheduler).sample_noise(clean)
    torch.manual_seed(0)
    shifted = Epsilon(scheduler, noise_offset=0.5).sample_noise(clean)
    difference = shifted - plain
    assert torch.allclose(difference, difference.mean((2, 3), keepdim=True), atol=1e-6)
    assert difference.mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.1)


def test_a_mask_lowers_the_loss_and_stops_its_gradient():
    error = torch.ones(2, 3, 4, 4, requires_grad=True)
    mask = torch.ones(2, 1, 4, 4)
    mask[1, :, :2] = 0
    loss = masked_mean(error, mask)
    assert loss.tolist() == [1.0, 0.5]
    loss.sum().backward()
    assert error.grad is not None
    assert error.grad[1, :, :2].abs().sum() == 0
    assert error.grad[1, :, 2:].abs().min() > 0
