"""Random numbers that follow from where a run is, so that a resumed one draws the same."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seed_step(seed: int, *, step: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch on every device for one optimizer step of one process.

    What a step draws depends on these three alone: neither on the steps before it, on validation
    images in between, nor on whether the run was interrupted.
    """
    _seed_all(_mixed("step", seed, rank) + step)


@contextlib.contextmanager
def drawn_apart(*parts: int | str) -> Iterator[None]:
    """Let random numbers follow from `parts` for a while; then go on with those of before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        _seed_all(_mixed(*parts))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class ReseededDataset(Dataset):
    """A dataset for worker processes, in which an image's random numbers follow from its place.

    Workers draw from generators of their own, whose state is lost with them; seeded for each image
    and epoch, they have no state to lose. Ours need it not, one of a person's own may.
    """

    def __init__(self, dataset: Any, *, seed: int):
        self.dataset = dataset
        self.seed = seed
        # Workers that live longer than an epoch see it change, since they share this memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        _seed_all(_mixed("image", self.seed, int(self._epoch), index))
        return self.dataset[index]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, for the dataset too if it asks."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def _seed_all(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number % 2**63)


def _mixed(*parts: int | str) -> int:
    """A number of 60 bits that differs for different parts."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 4
