"""The datasets of a mixture: what the mixture asks of each, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modules.batch import Sample
from modules.buckets import Size
from modules.mixture_entries import Entry
from modules.repeats import Repeats


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    name: str
    dataset: Any
    loss_weight: float
    start: int  # its first image's number in the mixture

    @property
    def provides(self) -> frozenset[str]:
        return frozenset(getattr(self.dataset, "provides", ()))

    def mark(self, sample: Sample) -> Sample:
        """Give a sample of its own the name and weight that it has in the mixture."""
        name, loss_weight = f"{self.name}/{sample.name}", sample.loss_weight * self.loss_weight
        return replace(sample, name=name, loss_weight=loss_weight)

    def buckets(self) -> Iterator[tuple[Size, np.ndarray]]:
        """Yield its buckets' sizes and indices; a size that it doesn't tell is the sample's."""
        sizes = getattr(self.dataset, "bucket_sizes", None)
        for number, bucket in enumerate(self.dataset.buckets):
            if len(bucket):
                size = sizes[number] if sizes else _size(self.dataset[bucket[0]])
                yield size, np.asarray(bucket, dtype=np.int64)

    def fields(self) -> tuple[str, ...]:
        """What its samples hold that all images of a batch have to."""
        sample = self.dataset[0]
        single = ("latents", "pixel_values", "original_size", "crop_top_left")
        held = [name for name in single if getattr(sample, name) is not None]
        if sample.pixel_values is None and not hasattr(self.dataset, "bucket_sizes"):
            held.append("no size in pixels")
        return (*held, *(["cached text"] if sample.text else []))

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of side inputs that are no images, whose sizes are their buckets'."""
        extras = self.dataset[0].extras
        return {key: tuple(extras[key].shape) for key in extras if extras[key].ndim != 3}

    def describe(self) -> str:
        """Name, images, repeats, weight."""
        images, total = len(self.dataset), sum(map(len, self.dataset.buckets))
        repeats = getattr(self.dataset, "repeats", None)
        times = f"{images} x {total / images:g}"
        if isinstance(repeats, Repeats):
            times = repeats.describe()
        weight = "" if self.loss_weight == 1 else f" (loss x {self.loss_weight:g})"
        return f"{self.name} {times}{weight}"


def name_parts(entries: Sequence[Entry]) -> list[str]:
    """A name for each: the last part of its path, or so much of it as makes it the only one."""
    given = [str(entry.args.get("path", entry.module)) for entry in entries]
    paths = [Path(path).parts or (path,) for path in given]
    names: list[str] = []
    for number, parts in enumerate(paths):
        others = [path for path in paths if path != parts]
        length = 1
        while length < len(parts) and any(p[-length:] == parts[-length:] for p in others):
            length += 1
        name = "/".join(parts[-length:])
        again = paths[:number].count(parts)
        names.append(f"{name}-{again + 1}" if again else name)
    return names


def check_side_inputs(parts: Sequence[Part]) -> None:
    """Check that all have the same side inputs, and arrays of the same shape.

    A mask is no such thing: an image without one counts fully.

    Raises:
        ValueError: lists what is lacking or differs.
    """
    faults = []
    first, *others = parts
    shapes = first.array_shapes()
    every = frozenset().union(*(part.provides for part in parts)) - {"mask"}
    for part in parts:
        for key in sorted(every - part.provides):
            having = ", ".join(p.name for p in parts if key in p.provides)
            faults.append(
                f"{part.name}: has no {key}, but {having} has; add it to its extras, or take "
                f"{key} out of the others'"
            )
    for part in others:
        for key, shape in part.array_shapes().items():
            if key in shapes and shape != shapes[key]:
                faults.append(
                    f"{part.name}: its {key} has shape {shape}, that of {first.name} "
                    f"{shapes[key]}; make both with one tagger"
                )
    if faults:
        raise ValueError("\n  ".join(["the datasets don't fit together:", *faults]))


def _size(sample: Sample) -> Size:
    """Width and height of an image, or of its latents."""
    values = sample.latents if sample.pixel_values is None else sample.pixel_values
    assert values is not None, "a sample holds an image"
    return values.shape[-1], values.shape[-2]
