"""Which images are not trained on: by their content, so that none ever changes sides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.content_hashes import content_hashes


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images that are measured, and those that remain to be trained on."""

    dataset: Any  # of the images that are measured
    measured: Sequence[int]  # their indices
    hashes: Sequence[str]  # of their content
    buckets: Sequence[Sequence[int]]  # indices that are trained on, of the training dataset
    count: int = 0  # held-out images, measured or not
    total: int = 0  # of how many

    def summary(self) -> str:
        """What is held out, in a line."""
        source = f"{self.count} of {self.total} images, by their content"
        if self.count == self.total:
            source = f"{self.total} images of a dataset of their own"
        rest = "" if len(self.measured) == self.count else f"; {len(self.measured)} are measured"
        return source + rest

    def digest(self) -> str:
        """A hash of what is measured."""
        return hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()[:12]


def nothing_held_out(dataset: Any) -> HeldOut:
    """All images of a dataset are trained on."""
    return HeldOut(dataset=dataset, measured=(), hashes=(), buckets=dataset.buckets)


def hold_out(dataset: Any, fraction: float, *, most: int | None = None) -> HeldOut:
    """Hold out about a fraction of a dataset's images.

    Whether an image is held out depends on its content and the fraction alone: neither on its name
    nor on other images. Images of equal content are on one side, and a greater fraction holds out
    all those of a smaller one.

    Raises:
        ValueError: on one side there would be no image.
    """
    hashes = content_hashes(dataset)
    places = np.array([_place(each) for each in hashes])
    is_held_out = places < fraction
    count = int(is_held_out.sum())
    if count == 0:
        enough = math.floor(places.min() * 100 + 1) / 100
        advice = f"with {enough:g} there is one" if enough < 1 else "add images"
        raise ValueError(
            f"split: of {len(hashes)} images {fraction:g} holds out none, by their content; "
            f"{advice}, or give a dataset of its own by args"
        )
    if count == len(hashes):
        raise ValueError(f"split: {fraction:g} holds out all of {count} images; give less")
    return HeldOut(
        dataset=dataset,
        **_choose(np.flatnonzero(is_held_out), hashes, most),
        buckets=[_without(bucket, is_held_out) for bucket in dataset.buckets],
        count=count,
        total=len(hashes),
    )


def all_of(dataset: Any, *, trained: Any, most: int | None = None) -> HeldOut:
    """Measure the images of a dataset of their own, and train on all of `trained`."""
    hashes, total = content_hashes(dataset), len(dataset)
    chosen = _choose(np.arange(total), hashes, most)
    return HeldOut(dataset=dataset, **chosen, buckets=trained.buckets, count=total, total=total)


def _choose(numbers: np.ndarray, hashes: Sequence[str], most: int | None) -> dict[str, Any]:
    """Those that are measured, in an order that follows from their content too."""
    chosen = sorted(numbers.tolist(), key=lambda number: (_place(hashes[number]), number))[:most]
    return {"measured": chosen, "hashes": [hashes[number] for number in chosen]}


def _place(content: str) -> float:
    """Where a hash lies between 0 and 1."""
    digest = hashlib.sha256(f"validation {content}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 12) / 2**52


def _without(bucket: Sequence[int], is_held_out: np.ndarray) -> Sequence[int]:
    """A bucket's indices without held-out images, however often these are repeated."""
    indices = np.asarray(bucket, dtype=np.int64)
    return indices[~is_held_out[indices % len(is_held_out)]]  # type: ignore[return-value]
