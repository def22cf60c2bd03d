"""An epoch's batches in the memory of two arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class EpochPlan(Sequence[list[int]]):
    """The batches of an epoch, made when they are asked for: 8 bytes for an image and a batch."""

    def __init__(self, images: np.ndarray, starts: np.ndarray, order: np.ndarray) -> None:
        self._images = images  # bucket after bucket
        self._starts = starts  # of each batch among them, and the end
        self._order = order  # of the batches

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        batch = self._order[number]
        return self._images[self._starts[batch] : self._starts[batch + 1]].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
