"""Parts as a person would plug them in, for the tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from modules.batch import Sample
from modules.dataset import LatentDataset
from modules.objectives import Epsilon
from networks.conditioner import Conditioner
from preprocess.job import Counts
from preprocess.latent import latent


class NeedsControl(Conditioner):
    """Asks for an extra that a plain dataset does not provide."""

    requires = ("control",)

    def attach(self, model) -> None:
        raise AssertionError("must be refused before it is attached")


class Deterministic(Epsilon):
    """Noise and timestep are functions of the image, so that batches can be split at will."""

    def sample_noise(self, clean: Tensor) -> Tensor:
        return clean.flip(-1)

    def sample_timesteps(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.full((batch_size,), 400, device=device)


class Poisoned(Epsilon):
    """Noise with a NaN in it, in the steps of POISONED if that is set."""

    calls = 0

    def sample_noise(self, clean: Tensor) -> Tensor:
        noise = super().sample_noise(clean)
        steps = os.environ.get("POISONED")
        self.calls += 1
        if steps is None or str(self.calls) in steps.split():
            noise[0, 0, 0, 0] = torch.nan
        return noise


class UnreadableForOne(LatentDataset):
    """Can't be measured by the second of several processes; hashing and training can read it."""

    def whole_sample(self, index: int) -> Sample:
        if os.environ.get("RANK") == "1" and not torch.is_grad_enabled():
            raise OSError("the disk is gone")
        return super().whole_sample(index)


class OwnSaver:
    """A saver that saves when it likes, and at no other time."""

    def save_if_due(self, run, *, last: bool) -> None:
        """Write nothing."""


def noted_latents(
    *, directory: str, model: str, device: str | None = None, shard: str | None = None
) -> Counts:
    """Latents, with a line in the file $NOTES: the part and how many images were done."""
    counts = latent(directory=directory, model=model, device=device, shard=shard)
    with Path(os.environ["NOTES"]).open("a", encoding="utf-8") as file:
        file.write(f"{shard} {counts.done}\n")
    return counts


class Slow(LatentDataset):
    """Reads each image in a tenth of a second, as from a slow disk."""

    def __getitem__(self, index: int) -> Sample:
        time.sleep(0.1)
        return super().__getitem__(index)
