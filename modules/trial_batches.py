"""The batches that a rehearsal tries, and what their times say of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.loading import Source


@dataclass(frozen=True)
class TrialBatch:
    """The greatest batch of a bucket."""

    indices: Sequence[int]  # of all processes
    size: tuple[int, int]  # width, height of its images in pixels
    images: int  # of one process at most, with their repeats
    total: int  # indices of its bucket in an epoch

    @property
    def work(self) -> int:
        """Pixels of one process, to which time and memory are about proportional."""
        return self.size[0] * self.size[1] * self.images

    def __str__(self) -> str:
        width, height = self.size
        return f"{width}x{height} ({self.images} image{'' if self.images == 1 else 's'})"


@dataclass(frozen=True)
class Tried:
    """What an optimizer step of some batches took."""

    batch: TrialBatch
    seconds: float
    reading: float  # of its data, seconds
    peak: int | None  # bytes of tensors on the device, where it tells
    batches: int

    @property
    def per_batch(self) -> float:
        """Seconds of one batch, without its reading."""
        return self.seconds / self.batches

    def __str__(self) -> str:
        memory = "" if self.peak is None else f", {self.peak / 2**30:.1f} GiB"
        return f"{self.batch} {shown(self.seconds)}{memory}"


def find_batches(source: Source, model: Any) -> list[TrialBatch]:
    """The greatest batch of each bucket; one image of each is read, for its size."""
    sampler, found = source.batch_sampler, []
    together = sampler.batch_size * sampler.world_size
    for bucket in sampler.buckets:
        indices = bucket[:together].tolist()
        images = -(-len(indices) // sampler.world_size) * source.repeats
        size = _size(source.loader.dataset[indices[0]], model)
        found.append(TrialBatch(tuple(indices), size, images, len(bucket)))
    return found


def estimate_seconds(
    batches: Sequence[TrialBatch], source: Source, small: Tried, large: Tried
) -> float:
    """About how long an epoch takes, if a batch's time grows with pixels as from small to large.

    The small one's step, the first, also starts kernels; it counts at most as the large one's.
    """
    less, more = small.batch.work, large.batch.work
    base = min(small.per_batch, large.per_batch)
    slope = (large.per_batch - base) / (more - less) if more > less else 0.0
    sampler = source.batch_sampler
    together, total = sampler.batch_size * sampler.world_size, 0.0
    for each in batches:
        area = each.size[0] * each.size[1]
        whole, rest = divmod(each.total, together)
        for times, images in ((whole, together), (1, rest)):
            if times and images:
                work = area * -(-images // sampler.world_size) * source.repeats
                total += times * max(base + slope * (work - less), 0.0)
    if source.loader.num_workers == 0:  # workers read meanwhile
        total += large.reading * len(sampler)
    return total


def shown(seconds: float) -> str:
    """A short time in seconds."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def _size(sample: Any, model: Any) -> tuple[int, int]:
    """Width and height of a sample's image in pixels."""
    if sample.latents is not None:
        height, width = sample.latents.shape[-2:]
        factor = model.vae_scale_factor
        return width * factor, height * factor
    height, width = sample.pixel_values.shape[-2:]
    return width, height
