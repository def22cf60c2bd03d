"""How far a prediction is from its target, element by element."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Loss = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)^2."""
    return (prediction - target).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|prediction - target|."""
    return (prediction - target).abs()


def huber_error(prediction: Tensor, target: Tensor, c: Tensor) -> Tensor:
    """Pseudo-Huber: the squared error where it is small, 2c times the absolute one where large.

    2c (sqrt((prediction - target)^2 + c^2) - c), `c` one value for each image (Khrapov et al. 2024,
    arXiv:2403.16728).
    """
    c = c.reshape(-1, *(1 for _ in prediction.shape[1:]))
    return 2 * c * (((prediction - target).square() + c.square()).sqrt() - c)


def smooth_l1_error(prediction: Tensor, target: Tensor, c: Tensor) -> Tensor:
    """Pseudo-Huber divided by c: its slope far from the target doesn't depend on c."""
    c = c.reshape(-1, *(1 for _ in prediction.shape[1:]))
    return 2 * (((prediction - target).square() + c.square()).sqrt() - c)


def scheduled_c(
    c: float, schedule: HuberSchedule, timesteps: Tensor, *, alpha_bar: Tensor, steps: int
) -> Tensor:
    """c of each image, (B,): constant, or falling from 1 at the first timestep to about `c`.

    `alpha_bar` is (B,), `steps` the schedule's length. Exponential: c^(t / T); by SNR:
    (1 - c) / (1 + sigma)^2 + c with sigma^2 = (1 - alpha_bar) / alpha_bar, as in sd-scripts.
    """
    if schedule == "constant":
        return torch.full_like(timesteps, c, dtype=torch.float32)
    if schedule == "exponential":
        return torch.exp(math.log(c) * timesteps.float() / steps)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return (1 - c) / (1 + sigma).square() + c
