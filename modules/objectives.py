"""Denoising objectives: what is noised, what is predicted, how it is weighted.

With alpha_bar_t the product of the schedule's alphas (Ho et al. 2020, arXiv:2006.11239, eq. 4):
x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from modules.losses import (
    HuberSchedule,
    Loss,
    absolute_error,
    huber_error,
    scheduled_c,
    smooth_l1_error,
    squared_error,
)
from modules.noise import offset_noise, pyramid_noise
from modules.weighting import debiased_weight, min_snr_weight

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class Diffusion:
    """A discrete diffusion process; a subclass says what the network predicts.

    Args:
        scheduler: whose `alphas_cumprod` the checkpoint was trained with.
        timestep_range: the part of the timesteps that is drawn, from 0.0 (hardly noised) to 1.0
            (noise only).
        noise_offset: see `modules.noise.offset_noise`; usually 0.05.
        pyramid_noise: discount of each level, see `modules.noise.pyramid_noise`; usually 0.3.
        input_perturbation: noises the input a bit more than the target knows of, by this part;
            usually 0.1 (Ning et al. 2023, arXiv:2301.11706).
        zero_terminal_snr: let the last timestep be noise alone (Lin et al. 2023,
            arXiv:2305.08891); None does what the scheduler says.
        min_snr_gamma: see `modules.weighting.min_snr_weight`; usually 5.
        debiased: see `modules.weighting.debiased_weight`.
        loss: l2, l1, huber or smooth_l1 (`modules.losses`).
        huber_c, huber_schedule: where huber and smooth_l1 go over from squared to absolute, and
            how that depends on the timestep.
    """

    prediction_type: ClassVar[str]

    def __init__(
        self,
        scheduler: DDPMScheduler,
        *,
        timestep_range: tuple[float, float] = (0.0, 1.0),
        noise_offset: float = 0.0,
        pyramid_noise: float = 0.0,
        input_perturbation: float = 0.0,
        zero_terminal_snr: bool | None = None,
        min_snr_gamma: float | None = None,
        debiased: bool = False,
        loss: Loss = "l2",
        huber_c: float = 0.1,
        huber_schedule: HuberSchedule = "snr",
    ):
        low, high = timestep_range
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"timestep_range: {low}, {high} is not a range within 0.0, 1.0")
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma: {min_snr_gamma} is not above 0; usual is 5")
        if min_snr_gamma is not None and debiased:
            raise ValueError("debiased: is another weighting than min_snr_gamma; keep one of them")
        if not 0.0 < huber_c <= 1.0:
            raise ValueError(f"huber_c: {huber_c} is not above 0 and at most 1; usual is 0.1")
        if not 0.0 <= pyramid_noise < 1.0:
            raise ValueError(f"pyramid_noise: {pyramid_noise} is not from 0 to below 1; usual: 0.3")
        self.scheduler = make_scheduler(scheduler, self.prediction_type, zero_terminal_snr)
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.float()  # (T,)
        if self.prediction_type == "epsilon" and self.alphas_cumprod[-1] == 0:
            raise ValueError(
                "zero_terminal_snr: at the last timestep there is noise alone, and predicting it "
                "says nothing of the image; train with modules.objectives.VPrediction"
            )
        self.noise_offset = noise_offset
        self.pyramid_noise = pyramid_noise
        self.input_perturbation = input_perturbation
        self.min_snr_gamma = min_snr_gamma
        self.debiased = debiased
        self.loss, self.huber_c, self.huber_schedule = loss, huber_c, huber_schedule
        steps = len(self.alphas_cumprod)
        first = min(int(low * steps), steps - 1)
        self.timesteps = range(first, max(int(high * steps), first + 1))

    def sample_noise(self, clean: Tensor) -> Tensor:
        noise = torch.randn_like(clean)
        if self.noise_offset:
            noise = offset_noise(noise, self.noise_offset)
        return pyramid_noise(noise, self.pyramid_noise) if self.pyramid_noise else noise

    def sample_timesteps(self, batch_size: int, device: torch.device) -> Tensor:
        drawn = self.timesteps
        return torch.randint(drawn.start, drawn.stop, (batch_size,), device=device)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar(timesteps, clean.dim())
        if self.input_perturbation:
            noise = noise + self.input_perturbation * torch.randn_like(noise)
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say what it predicts")

    def loss_weight(self, timesteps: Tensor) -> Tensor:
        if self.min_snr_gamma is None and not self.debiased:
            return torch.ones_like(timesteps, dtype=torch.float32)
        alpha_bar = self._alpha_bar(timesteps, 1)
        snr, velocity = alpha_bar / (1 - alpha_bar), self.prediction_type == "v_prediction"
        if self.min_snr_gamma is None:
            return debiased_weight(snr, velocity=velocity)
        return min_snr_weight(snr, self.min_snr_gamma, velocity=velocity)

    def error(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        prediction, target = prediction.float(), target.float()
        if self.loss == "l2":
            return squared_error(prediction, target)
        if self.loss == "l1":
            return absolute_error(prediction, target)
        c = scheduled_c(
            self.huber_c,
            self.huber_schedule,
            timesteps,
            alpha_bar=self._alpha_bar(timesteps, 1),
            steps=len(self.alphas_cumprod),
        )
        huber = huber_error if self.loss == "huber" else smooth_l1_error
        return huber(prediction, target, c)

    def _alpha_bar(self, timesteps: Tensor, dimensions: int) -> Tensor:
        if self.alphas_cumprod.device != timesteps.device:  # once, at the first step
            self.alphas_cumprod = self.alphas_cumprod.to(timesteps.device)
        chosen = self.alphas_cumprod[timesteps]
        return chosen.reshape(-1, *(1 for _ in range(dimensions - 1)))


class Epsilon(Diffusion):
    """Predicts the noise: SD1 and SD2-base."""

    prediction_type = "epsilon"

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


class VPrediction(Diffusion):
    """Predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0: SD2-v.

    Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """

    prediction_type = "v_prediction"

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar(timesteps, clean.dim())
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean


def make_scheduler(
    scheduler: DDPMScheduler, prediction_type: str, zero_terminal_snr: bool | None
) -> DDPMScheduler:
    """The scheduler that stands for what is trained: the given one, or one changed accordingly."""
    config = scheduler.config
    changes: dict[str, Any] = {}
    if config.prediction_type != prediction_type:
        changes["prediction_type"] = prediction_type
    if zero_terminal_snr is not None and config.rescale_betas_zero_snr != zero_terminal_snr:
        changes["rescale_betas_zero_snr"] = zero_terminal_snr
        changes["timestep_spacing"] = "trailing" if zero_terminal_snr else "leading"
    return type(scheduler).from_config(config, **changes) if changes else scheduler


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean error of each image, (B,), each position weighted by the mask.

    The mean runs over all positions, so that a masked area lowers the loss. `error` is
    (B, C, h, w), `mask` (B, 1, h, w) or None.
    """
    if mask is not None:
        error = error * mask.to(error.dtype)
    return error.flatten(1).mean(1)


OBJECTIVES: dict[str, type[Diffusion]] = {
    objective.prediction_type: objective for objective in (Epsilon, VPrediction)
}


def objective_of(prediction_type: str, path: str) -> type[Diffusion]:
    """The objective of a prediction type, which the model at `path` has.

    Raises:
        ValueError: there is none.
    """
    if prediction_type not in OBJECTIVES:
        raise ValueError(
            f"{path}: prediction type {prediction_type!r} is not one of {', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[prediction_type]
