"""Batches from datasets, in the groups that make up one optimizer step."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from modules.batch import Batch, Sample, collate
from modules.buckets import BucketBatchSampler
from modules.errors import RunError
from modules.randomness import ReseededDataset


@dataclass(frozen=True)
class Part:
    """One batch of an optimizer step."""

    batch: Batch
    images: int  # on all ranks
    weight: float  # of the sum of this rank's losses
    indices: Sequence[int] = ()  # of this rank's images that count; none of class images


Group = list[Part]
"""The batches of one optimizer step."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset's batches: `loader` yields this rank's part of what `batch_sampler` plans."""

    loader: Any
    batch_sampler: BucketBatchSampler
    weight: float = 1.0  # of its mean loss
    repeats: int = 1  # of each image in its batch

    def draw(self, *, start: int = 0) -> Iterator[_Drawn]:
        """Yield batch after batch, epoch after epoch, without end, from number `start` on."""
        epoch, first = divmod(start, len(self.batch_sampler))
        while True:
            self.batch_sampler.set_epoch(epoch, first)
            self.loader.dataset.set_epoch(epoch)
            planned = self.batch_sampler.plan(epoch)
            for number, batch in enumerate(self._read(), start=first):
                _, is_real = self.batch_sampler.share(planned[number])
                last = number == len(planned) - 1
                yield _Drawn(batch, len(planned[number]) * self.repeats, is_real, last)
            epoch, first = epoch + 1, 0

    def _read(self) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Raises:
            RunError: a file of the dataset can't be read, or doesn't fit its batch.
        """
        try:
            yield from self.loader
        except (ValueError, OSError) as error:  # a worker's message has its whole traceback
            raise RunError(f"dataset: {str(error).strip().splitlines()[-1]}") from error

    def trial(self, planned: Sequence[int], *, batches: int) -> Group:
        """A step of so many times one batch, outside of all epochs and read by this process."""
        indices, is_real = self.batch_sampler.share(planned)
        batch = collate([self.loader.dataset[index] for index in indices])
        one = _Drawn(batch, len(planned) * self.repeats, is_real, ends_epoch=False)
        return self.weigh([one] * batches)

    def weigh(self, drawn: Sequence[_Drawn]) -> Group:
        """Give each batch the weight with which the losses' sum is their mean over all images.

        Over accumulation and ranks too: a short last batch or group counts exactly as much as its
        images. A rank without an image runs along with weight 0.
        """
        images = sum(one.images for one in drawn)
        ranks = self.batch_sampler.world_size  # over which gradients are averaged
        factor = self.weight * ranks / images
        return [
            Part(one.batch, one.images, one.is_real * factor, one.batch.indices * one.is_real)
            for one in drawn
        ]


@dataclass(frozen=True)
class _Drawn:
    batch: Batch
    images: int
    is_real: bool  # whether this rank has an image in it
    ends_epoch: bool


def make_source(
    dataset: Any,
    batch_sampler: BucketBatchSampler,
    *,
    weight: float = 1.0,
    repeats: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Source:
    """A source over a dataset; worker processes live as long as it does."""
    loader = DataLoader(
        IndexedDataset(
            ReseededDataset(dataset, seed=batch_sampler.seed) if num_workers else dataset
        ),
        batch_sampler=batch_sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # of its own: it draws from it when an epoch begins
        pin_memory=pin_memory,
    )
    return Source(loader=loader, batch_sampler=batch_sampler, weight=weight, repeats=repeats)


class IndexedDataset(Dataset):
    """A dataset whose samples know with which index they were asked for."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.dataset[index], index=index)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, if the dataset asks."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def _ignore_interrupts(_worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def step_groups(
    source: Source,
    *,
    gradient_accumulation_steps: int,
    prior: Source | None = None,
    done: int = 0,
) -> Iterator[Group]:
    """Groups of one optimizer step after another, without end, behind the `done` first ones.

    An epoch's last group may be smaller: no step spans two epochs. Each batch of `source` has one
    of `prior` beside it, so that prior images never change the number of steps.
    """
    batches = len(source.batch_sampler)
    epochs, steps = divmod(done, -(-batches // gradient_accumulation_steps))
    start = epochs * batches + steps * gradient_accumulation_steps
    beside = prior.draw(start=start) if prior is not None else iter(())
    drawn: list[_Drawn] = []
    for one in source.draw(start=start):
        drawn.append(one)
        if len(drawn) == gradient_accumulation_steps or one.ends_epoch:
            group = source.weigh(drawn)
            if prior is not None:
                weighed = prior.weigh(list(islice(beside, len(drawn))))
                group += [replace(part, indices=()) for part in weighed]
            yield group
            drawn = []
