"""Noise for training: plain, shifted by channel, or with coarse structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def offset_noise(noise: Tensor, strength: float) -> Tensor:
    """Shift each channel of each image by `strength` times one random number.

    Lets a model learn pictures much brighter or darker than the mean (Guttenberg 2023, "Diffusion
    with offset noise").
    """
    size = (*noise.shape[:2], *(1 for _ in noise.shape[2:]))
    return noise + strength * torch.randn(size, device=noise.device, dtype=noise.dtype)


def pyramid_noise(noise: Tensor, discount: float, *, levels: int = 10) -> Tensor:
    """Add noise of ever lower resolution, each `discount` times as strong, scaled back to std 1.

    Each level is 2 to 4 times coarser than the one before, down to one value (Whitaker 2023,
    "Multi-resolution noise for diffusion model training"). `noise` is (B, C, h, w).
    """
    count, channels, height, width = noise.shape
    side_factors = 2 + 2 * torch.rand(levels, device="cpu")  # no wait for the device
    total, size = noise, (height, width)
    for level, factor in enumerate(side_factors.tolist(), start=1):
        size = (max(1, int(size[0] / factor)), max(1, int(size[1] / factor)))
        coarse = torch.randn(count, channels, *size, device=noise.device, dtype=noise.dtype)
        upscaled = functional.interpolate(coarse, (height, width), mode="bilinear")
        total = total + discount**level * upscaled
        if 1 in size:
            break
    return total / total.std()
