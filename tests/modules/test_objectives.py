"""Objectives against their closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import interpolate

from modules.noise import pyramid_noise
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


def loss_of(objective, difference: float, timestep: int) -> float:
    prediction = torch.full((1, 4, 2, 2), difference)
    error = objective.error(prediction, torch.zeros_like(prediction), torch.tensor([timestep]))
    assert torch.equal(error, error.flatten()[0].expand_as(error))
    return error.flatten()[0].item()


@pytest.mark.parametrize("difference", [-3.0, 0.01, 2.0])
def test_losses_are_their_closed_forms(scheduler, difference):
    assert loss_of(Epsilon(scheduler), difference, 5) == pytest.approx(difference**2)
    l1 = Epsilon(scheduler, loss="l1")
    assert loss_of(l1, difference, 5) == pytest.approx(abs(difference))
    c = 0.2
    root = (difference**2 + c**2) ** 0.5 - c
    options = {"huber_c": c, "huber_schedule": "constant"}
    huber = Epsilon(scheduler, loss="huber", **options)
    assert loss_of(huber, difference, 5) == pytest.approx(2 * c * root, rel=1e-4)
    smooth = Epsilon(scheduler, loss="smooth_l1", **options)
    assert loss_of(smooth, difference, 5) == pytest.approx(2 * root, rel=1e-4)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_hubers_schedules_are_their_closed_forms(scheduler, timestep):
    alpha_bar = scheduler.alphas_cumprod[timestep].item()
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    expected = {
        "exponential": 0.1 ** (timestep / 1000),
        "snr": (1 - 0.1) / (1 + sigma) ** 2 + 0.1,
        "constant": 0.1,
    }
    for schedule, c in expected.items():
        objective = Epsilon(scheduler, loss="huber", huber_c=0.1, huber_schedule=schedule)
        value = loss_of(objective, 2.0, timestep)
        assert value == pytest.approx(2 * c * ((4 + c**2) ** 0.5 - c), rel=1e-4), schedule


@pytest.mark.parametrize(("objective_class", "velocity"), [(Epsilon, False), (VPrediction, True)])
def test_debiased_weights(objective_class, velocity, scheduler):
    timesteps = torch.tensor([0, 10, 500, 999])
    weights = objective_class(scheduler, debiased=True).loss_weight(timesteps)
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    snr = (alpha_bar / (1 - alpha_bar)).clamp(max=1000)
    expected = 1 / (snr + 1) if velocity else 1 / snr.sqrt()
    assert torch.allclose(weights, expected, rtol=1e-5)
    assert weights[0] < weights[-1]


def test_a_schedule_ends_in_noise_alone(scheduler, drawn):
    clean, noise, _ = drawn
    objective = VPrediction(scheduler, zero_terminal_snr=True)
    reference = DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)
    assert torch.equal(objective.alphas_cumprod, reference.alphas_cumprod)
    last = torch.full((4,), 999)
    assert torch.equal(objective.add_noise(clean, noise, last), noise)
    assert torch.equal(objective.target(clean, noise, last), -clean)
    assert objective.scheduler.config.timestep_spacing == "trailing"
    assert objective.scheduler.config.prediction_type == "v_prediction"
    weights = VPrediction(scheduler, zero_terminal_snr=True, min_snr_gamma=5).loss_weight(last)
    assert torch.isfinite(weights).all()


def test_epsilon_with_a_zero_terminal_snr_is_refused(scheduler):
    with pytest.raises(ValueError, match=r"zero_terminal_snr: .*VPrediction"):
        Epsilon(scheduler, zero_terminal_snr=True)
    already = DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="zero_terminal_snr"):
        Epsilon(already)
    assert Epsilon(already, zero_terminal_snr=False).alphas_cumprod[-1] > 0


def test_pyramid_noise_is_coarser_and_of_the_same_size(scheduler):
    clean = torch.zeros(8, 4, 64, 48)
    torch.manual_seed(0)
    plain = Epsilon(scheduler).sample_noise(clean)
    torch.manual_seed(0)
    coarse = Epsilon(scheduler, pyramid_noise=0.5).sample_noise(clean)
    assert coarse.std().item() == pytest.approx(1.0, rel=1e-3)

    def neighbours(noise):
        return (noise[..., :-1] * noise[..., 1:]).mean().item()

    assert abs(neighbours(plain)) < 0.02
    assert neighbours(coarse) > 0.1
    far = (coarse[..., :24] * coarse[..., 24:]).mean()  # levels of few values reach everywhere
    assert far > 5 * (plain[..., :24] * plain[..., 24:]).mean().abs()


@pytest.mark.parametrize("levels", [1, 2])
def test_pyramid_noise_is_its_closed_form(levels):
    """noise + sum of discount^level times coarser noise, divided by its std (Whitaker 2023)."""
    noise = torch.randn(2, 3, 32, 24)
    torch.manual_seed(4)
    found = pyramid_noise(noise, 0.4, levels=levels)
    torch.manual_seed(4)
    factors = (2 + 2 * torch.rand(levels)).tolist()
    expected, height, width = noise, 32, 24
    for level, factor in enumerate(factors, start=1):
        height, width = int(height / factor), int(width / factor)
        coarse = interpolate(torch.randn(2, 3, height, width), (32, 24), mode="bilinear")
        expected = expected + 0.4**level * coarse
    assert torch.allclose(found, expected / expected.std(), atol=1e-6)


def test_input_perturbation_noises_the_input_alone(scheduler):
    generator = torch.Generator().manual_seed(1)
    clean = torch.zeros(16, 4, 16, 16)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.full((16,), 999)
    objective = Epsilon(scheduler, input_perturbation=0.5)
    difference = objective.add_noise(clean, noise, timesteps) - noise
    scale = (1 - scheduler.alphas_cumprod[999]).sqrt().item()
    assert difference.std().item() == pytest.approx(0.5 * scale, rel=0.05)
    assert torch.equal(objective.target(clean, noise, timesteps), noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"huber_c": 0.0}, "huber_c: 0.0"),
        ({"pyramid_noise": 1.5}, "pyramid_noise: 1.5"),
        ({"min_snr_gamma": 5, "debiased": True}, "debiased: is another weighting"),
    ],
)
def test_options_out_of_range_are_refused(scheduler, options, message):
    with pytest.raises(ValueError, match=message):
        Epsilon(scheduler, **options)


def test_a_scheduler_that_fits_is_left_as_it_is(scheduler):
    assert Epsilon(scheduler).scheduler is scheduler
    assert VPrediction(scheduler).scheduler.config.prediction_type == "v_prediction"
