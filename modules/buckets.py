"""Aspect-ratio buckets: their sizes, the list of their images, and batches of one bucket each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.epoch_plan import EpochPlan
from modules.files import write_atomically
from modules.store import LocalStore, Store

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Limits:
    """What sizes buckets may have, in pixels."""

    resolution: int
    """Side of the square; no bucket has more pixels."""
    min_length: int
    max_length: int
    max_ratio: float


LIMITS = {
    "sd1": Limits(512, 320, 768, 2.0),
    "sd2": Limits(768, 512, 1024, 2.0),
    "sdxl": Limits(1024, 512, 2048, 4.0),  # as SDXL was trained: arXiv:2307.01952, appendix I
}
"""Limits that suit a family of models."""


def make_buckets(
    *, resolution: int, min_length: int, max_length: int, max_ratio: float, step: int = 64
) -> list[Size]:
    """Return the bucket sizes (width, height), sorted: multiples of `step`, in both orientations.

    For every width from `min_length` up, the height is the greatest with width * height <=
    resolution ** 2. No side is shorter than `min_length` or longer than `max_length`, and no
    aspect ratio beyond `max_ratio`; the square of `resolution` is always there.

    Raises:
        ValueError: an argument is out of range.
    """
    if step < 1 or resolution < step:
        raise ValueError(f"resolution: {resolution} is smaller than a step of {step}")
    if not 1 <= min_length <= max_length:
        raise ValueError(f"min_length: {min_length} is not within 1 and max_length {max_length}")
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio: {max_ratio} is below 1; 1 makes squares only")
    square = resolution // step * step
    buckets = {(square, square)}
    shortest = -(-min_length // step) * step
    for width in range(shortest, max_length + 1, step):
        height = min(resolution**2 // width, max_length) // step * step
        if height >= shortest and 1 / max_ratio <= width / height <= max_ratio:
            buckets |= {(width, height), (height, width)}
    return sorted(buckets)


def assign(width: int, height: int, buckets: Iterable[Size]) -> Size:
    """Return the bucket nearest in aspect ratio; of equals the largest.

    Ratios are compared by their logarithms, so that an image and the same lying on its side
    go to buckets that are each other's mirror.
    """
    ratio = math.log(width / height)
    return min(
        buckets,
        key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]),
    )


@dataclass(frozen=True)
class BucketIndex:
    """The names of every bucket's images, as `buckets.json` holds them: {"(512, 768)": [...]}."""

    buckets: Mapping[Size, Sequence[str]]

    @classmethod
    def load(cls, path: Path) -> BucketIndex:
        """Read and check a `buckets.json`.

        Raises:
            ValueError: the file is missing or malformed, has no images, has a name twice, or one
                that leads out of the dataset.
        """
        return cls.read(LocalStore(path.parent), path.name)

    @classmethod
    def read(cls, store: Store, file: str) -> BucketIndex:
        """Read and check a `buckets.json` as `load` does, wherever it lies."""
        path = f"{store}/{file}"
        try:
            content = json.loads(
                store.read(file).decode("utf-8-sig"),
                object_pairs_hook=lambda pairs: pairs,  # a dict would hide a key that comes twice
            )
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; run preprocess/bucketing.py") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not a JSON file ({error})") from error
        buckets, faults = _parse(content)
        if faults:
            raise ValueError("\n  ".join([f"{path}: is not a valid list of buckets:", *faults]))
        return cls(buckets)

    def save(self, path: Path) -> None:
        """Write the buckets, sorted, in one atomic step."""
        content = {f"({w}, {h})": list(names) for (w, h), names in sorted(self.buckets.items())}
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


class BucketBatchSampler:
    """Yield batches of indices, each from one bucket; a batch sampler for a DataLoader.

    An epoch's plan is a pure function of (seed, epoch): every image once, in batches of
    `batch_size * world_size` images that the ranks share; a bucket's last batch is smaller. All
    ranks see the same bucket at the same step, so the DataLoader must not be sharded again.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is less than 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: {rank} is not within 0 and world_size {world_size}")
        if seed < 0:
            raise ValueError(f"seed: {seed} is negative")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0
        self.buckets = [np.asarray(bucket, dtype=np.int64) for bucket in buckets if len(bucket)]

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same for every rank."""
        size = self.batch_size * self.world_size
        return sum(-(-len(bucket) // size) for bucket in self.buckets)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's share of the current epoch's batches, from `start_batch` on."""
        plan = self.plan(self.epoch)
        for number in range(self.start_batch, len(plan)):
            yield self.share(plan[number])[0]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch it begins with after a resume."""
        self.epoch = epoch
        self.start_batch = start_batch

    def plan(self, epoch: int) -> EpochPlan:
        """Return the batches of an epoch, each with the images of all ranks."""
        size = self.batch_size * self.world_size
        rng = np.random.default_rng([self.seed, epoch])
        order = [rng.permutation(each) if self.shuffle else each for each in self.buckets]
        starts, first = [], 0
        for bucket in self.buckets:
            starts.append(np.arange(first, first + len(bucket), size))
            first += len(bucket)
        starts.append(np.array([first]))
        count = len(self)
        return EpochPlan(
            np.concatenate(order) if order else np.arange(0),
            np.concatenate(starts),
            rng.permutation(count) if self.shuffle else np.arange(count),
        )

    def share(self, batch: Sequence[int]) -> tuple[list[int], bool]:
        """Return this rank's images of a batch of the plan, and whether they count.

        A rank for which the batch has no image gets its first one, to be given weight 0.
        """
        indices = list(batch[self.rank :: self.world_size])
        return (indices, True) if indices else ([batch[0]], False)


_KEY = re.compile(r"\(\s*([1-9]\d*)\s*,\s*([1-9]\d*)\s*\)")
_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|$)|.*\0", re.DOTALL)
_LISTED_FAULTS = 10


def _parse(content: object) -> tuple[dict[Size, list[str]], list[str]]:
    buckets: dict[Size, list[str]] = {}
    faults: list[str] = []
    seen: set[str] = set()
    pairs = content if isinstance(content, list) else None
    if pairs is None or any(not isinstance(pair, tuple) for pair in pairs):
        return {}, ['must be an object such as {"(512, 512)": ["name", ...]}']
    for key, names in pairs:
        match = _KEY.fullmatch(key)
        if match is None:
            faults.append(f'"{key}": is not a bucket; write "(width, height)"')
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            faults.append(f'"{key}": is not a list of names')
        elif (size := (int(match[1]), int(match[2]))) in buckets:
            faults.append(f'"{key}": stands there twice; unite the lists')
        else:
            buckets[size] = names
            faults.extend(f"{name!r}: {fault}" for name, fault in _find_bad_names(names, seen))
    if not faults and not seen:
        faults.append("holds no images; run preprocess/bucketing.py")
    if len(faults) > _LISTED_FAULTS:
        faults[_LISTED_FAULTS:] = [f"and {len(faults) - _LISTED_FAULTS} more"]
    return buckets, faults


def _find_bad_names(names: list[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if not name or _OUTSIDE.match(name):
            yield name, "leads out of the dataset; use names within it"
        elif name in seen:
            yield name, "is listed twice; list every image once"
        seen.add(name)
