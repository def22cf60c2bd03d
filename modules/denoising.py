"""The error of a prediction. Every model family and every network takes this path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from modules.batch import Batch, DenoiserInputs
from modules.objectives import masked_mean
from modules.protocols import Network, Objective

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


def denoising_error(
    model: DiffusionModel,
    networks: Iterable[Network],
    objective: Objective,
    batch: Batch,
    *,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The mean error of each image, (B,), weighed by its mask alone.

    `clean` and `noise` are (B, C, h, w), `timesteps` (B,).
    """
    inputs = DenoiserInputs(
        sample=objective.add_noise(clean, noise, timesteps),
        timestep=timesteps,
        **model.encode_prompts(batch),
    )
    for network in networks:
        inputs = network.condition(inputs, batch)

    prediction = model.denoise(inputs)
    target = objective.target(clean, noise, timesteps)
    error = objective.error(prediction, target, timesteps)  # (B, C, h, w)
    return masked_mean(error, batch.mask)
