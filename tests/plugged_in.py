"""Parts as a person would plug them in, for the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.objectives import Epsilon
from networks.conditioner import Conditioner


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
