"""Denoising objectives: what is noised, what is predicted, how it is weighted.

With alpha_bar_t the product of the schedule's alphas (Ho et al. 2020, arXiv:2006.11239, eq. 4):
x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class Diffusion:
    """A discrete diffusion process; a subclass says what the network predicts.

    Args:
        scheduler: whose `alphas_cumprod` the checkpoint was trained with.
        timestep_range: the part of the timesteps that is drawn, from 0.0 (hardly noised) to 1.0
            (noise only).
        noise_offset: adds this times one random number per image and channel to the noise
            (Guttenberg 2023, "Diffusion with offset noise").
        min_snr_gamma: weights timesteps by min(SNR, gamma) / SNR, so that hardly noised ones
            count less (Hang et al. 2023, arXiv:2303.09556); usually 5.
    """

    prediction_type: str

    def __init__(
        self,
        scheduler: DDPMScheduler,
        *,
        timestep_range: tuple[float, float] = (0.0, 1.0),
        noise_offset: float = 0.0,
        min_snr_gamma: float | None = None,
    ):
        low, high = timestep_range
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"timestep_range: {low}, {high} is not a range within 0.0, 1.0")
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma: {min_snr_gamma} is not above 0; usual is 5")
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float()  # (T,)
        self.noise_offset = noise_offset
        self.min_snr_gamma = min_snr_gamma
        steps = len(self.alphas_cumprod)
        self._low = min(int(low * steps), steps - 1)
        self._high = max(int(high * steps), self._low + 1)

    def sample_noise(self, clean: Tensor) -> Tensor:
        noise = torch.randn_like(clean)
        if self.noise_offset:
            size = (*clean.shape[:2], *(1 for _ in clean.shape[2:]))
            noise = noise + self.noise_offset * torch.randn(size, device=clean.device)
        return noise

    def sample_timesteps(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.randint(self._low, self._high, (batch_size,), device=device)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar(timesteps, clean.dim())
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say what it predicts")

    def loss_weight(self, timesteps: Tensor) -> Tensor:
        if self.min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        alpha_bar = self._alpha_bar(timesteps, 1)
        return self._min_snr_weight(alpha_bar / (1 - alpha_bar), self.min_snr_gamma)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.float() - target.float()).square()

    def _min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no min-SNR weight")

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

    def _min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / snr


class VPrediction(Diffusion):
    """Predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0: SD2-v.

    Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """

    prediction_type = "v_prediction"

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar(timesteps, clean.dim())
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean

    def _min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / (snr + 1)


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
