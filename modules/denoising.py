"""The error of a prediction. Every model family and every network takes this path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from modules.batch import Batch, DenoiserInputs
from modules.objectives import masked_mean

if TYPE_CHECKING:
    from modules.trainer import Trainer


def denoising_error(
    run: Trainer, batch: Batch, *, clean: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """The mean error of each image, (B,), weighed by its mask alone.

    `clean` and `noise` are (B, C, h, w), `timesteps` (B,).
    """
    inputs = DenoiserInputs(
        sample=run.objective.add_noise(clean, noise, timesteps),
        timestep=timesteps,
        **run.model.encode_prompts(batch),
    )
    for network in run.networks.values():
        inputs = network.condition(inputs, batch)

    prediction = run.model.denoise(inputs)
    target = run.objective.target(clean, noise, timesteps)
    error = run.objective.error(prediction, target, timesteps)  # (B, C, h, w)
    return masked_mean(error, batch.mask)
