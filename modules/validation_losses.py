"""The loss of an image that is not trained on, without what chance does to a training loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modules.batch import Batch
from modules.denoising import denoising_error
from modules.moments import at_mean
from modules.randomness import drawn_apart

if TYPE_CHECKING:
    from modules.trainer import Trainer

_DRAWS = 2**20


class DenoisingLosses:
    """The error of the prediction at fixed timesteps, with noise of each image's own.

    It is the objective's error, below the image's mask, but not weighted: neither by timestep
    (min-SNR) nor by dataset (`loss_weight`), so that runs with other weights can be compared.

    Args:
        num_timesteps: of which each stands for an equal part of those that are trained.
        seed: of the noise; the rest of it follows from the image's content and the timestep's
            place among the others.
        most: rows of a batch at a time.
    """

    def __init__(self, objective: Any, *, num_timesteps: int, seed: int, most: int):
        self.timesteps = spread_timesteps(objective, num_timesteps)
        self.labels = [f"t{timestep:g}" for timestep in self.timesteps.tolist()]
        self.seed = seed
        self._most = most

    def of(self, run: Trainer, batch: Batch, content: str) -> Tensor:
        """The loss of one image at each timestep, (len(labels),)."""
        batch = run.model.encode(at_mean(batch, run.model.latent_channels))
        clean = run.model.encode_images(batch)
        noise = torch.cat(
            [self._noise(run, clean, content, place) for place in range(len(self.timesteps))]
        )
        timesteps = self.timesteps.to(clean.device)
        parts = []
        for start in range(0, len(timesteps), self._most):
            chosen = slice(start, start + self._most)
            count = len(timesteps[chosen])
            error = denoising_error(
                run,
                batch.repeat(count),
                clean=clean.expand(count, *clean.shape[1:]),
                noise=noise[chosen],
                timesteps=timesteps[chosen],
            )
            parts.append(error)
        return torch.cat(parts).float()

    def _noise(self, run: Trainer, clean: Tensor, content: str, place: int) -> Tensor:
        """Noise of one image; drawn on the CPU, so that it is the same on every device."""
        with drawn_apart("noise", self.seed, content, place):
            return run.objective.sample_noise(clean.float().cpu()).to(clean)


class ReconstructionLosses:
    """The VAE's reconstruction loss, with a sample of the posterior of each image's own.

    The divergence of the posterior, which only training adds, is not in it.
    """

    labels = ("",)

    def __init__(self, objective: Any, *, num_timesteps: int, seed: int, most: int):
        self.seed = seed  # of the posteriors; a VAE has no timesteps

    def of(self, run: Trainer, batch: Batch, content: str) -> Tensor:
        """The loss of one image, (1,)."""
        objective: Any = run.objective
        return objective.reconstruction_loss(run.model.vae, batch).float()


def spread_timesteps(objective: Any, count: int) -> Tensor:
    """The means of `count` equal parts of what an objective draws, sorted: (count,) or fewer.

    That holds for timesteps of any distribution; where they are whole numbers means are rounded up.
    """
    with drawn_apart("timesteps"):
        drawn = objective.sample_timesteps(_DRAWS, torch.device("cpu")).sort().values
    means = [part.double().mean().item() for part in drawn.chunk(count)]
    if not drawn.is_floating_point():
        means = [min(math.ceil(mean), int(drawn[-1])) for mean in means]
    return torch.tensor(sorted(set(means)), dtype=drawn.dtype)
