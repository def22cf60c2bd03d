"""The images of a dataset that bucketing made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.buckets import BucketIndex, Size
from modules.dataset_folder import find_dataset_images
from modules.shard import Shard


@dataclass(frozen=True)
class Task:
    """An image to work on: its name, its bucket and the file."""

    name: str
    size: Size
    path: Path


def find_images(directory: Path, shard: Shard) -> tuple[list[Task], list[str]]:
    """Return a task for each image that buckets.json lists, and a line for each that isn't there.

    Only those of the shard.

    Raises:
        ValueError: there is no usable buckets.json.
    """
    listed = BucketIndex.load(directory / "buckets.json").buckets
    buckets = {size: [n for n in names if shard.owns(n)] for size, names in listed.items()}
    files = find_dataset_images(directory, [name for names in buckets.values() for name in names])
    tasks, missing = [], []
    for size, names in buckets.items():
        for name in names:
            if name in files:
                tasks.append(Task(name, size, files[name]))
            else:
                missing.append(
                    f"{directory / 'images' / name}: no such image; run bucketing.py again"
                )
    return tasks, missing


def check_multiples(tasks: Sequence[Task], scale_factor: int) -> None:
    """Check that every bucket is made of whole latent positions.

    Raises:
        ValueError: one isn't.
    """
    for size in {task.size: None for task in tasks}:
        if size[0] % scale_factor or size[1] % scale_factor:
            raise ValueError(
                f"bucket {size}: the VAE wants multiples of {scale_factor}; run "
                f"preprocess/bucketing.py with such a --step"
            )
