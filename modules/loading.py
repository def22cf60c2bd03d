"""Batches from a dataset, in the groups that make up one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from modules.batch import Batch, collate
from modules.buckets import BucketBatchSampler

Group = list[tuple[list[int], Batch]]
"""The batches of one optimizer step, each with the indices of its global batch."""


def make_loader(
    dataset: Any, batch_sampler: BucketBatchSampler, *, num_workers: int, pin_memory: bool
) -> DataLoader:
    """A loader of this rank's part of each global batch; workers live as long as it does."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def step_groups(
    loader: DataLoader, batch_sampler: BucketBatchSampler, *, gradient_accumulation_steps: int
) -> Iterator[Group]:
    """Groups of one optimizer step after another, epoch after epoch, without end.

    An epoch's last group may be smaller: no step spans two epochs.
    """
    epoch = 0
    while True:
        batch_sampler.set_epoch(epoch)
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(epoch)
        planned = batch_sampler.plan(epoch)
        group: Group = []
        for number, batch in enumerate(loader):
            group.append((planned[number], batch))
            if len(group) == gradient_accumulation_steps or number == len(planned) - 1:
                yield group
                group = []
        epoch += 1
