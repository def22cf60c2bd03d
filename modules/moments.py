"""Cached moments of a VAE's posterior: the mean, and behind it the logarithm of the variance.

Latents of C channels have moments of 2C, (2C, h, w), unscaled like them. A step draws its latents
from them, as it would have drawn them from the image.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from modules.batch import Batch


def are_moments(values: Tensor, channels: int) -> bool:
    """Whether cached values (..., 2C, h, w) are moments of latents of so many channels."""
    return values.shape[-3] == 2 * channels


def draw(values: Tensor, channels: int) -> Tensor:
    """A sample (B, C, h, w) of moments, by torch's random numbers of their device; or latents."""
    if not are_moments(values, channels):
        return values
    mean, log_variance = values.chunk(2, dim=-3)
    return torch.addcmul(mean, log_variance.mul(0.5).exp_(), torch.randn_like(mean))


def mean_of(values: Tensor, channels: int) -> Tensor:
    """The mean (..., C, h, w) of moments; latents as they are."""
    return values.chunk(2, dim=-3)[0] if are_moments(values, channels) else values


def at_mean(batch: Batch, channels: int) -> Batch:
    """The batch with nothing left to chance in its latents."""
    if batch.latents is None:
        return batch
    return replace(batch, latents=mean_of(batch.latents, channels))
