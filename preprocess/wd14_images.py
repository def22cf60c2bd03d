"""The images that a tagger sees: found in a dataset or a folder, decoded ahead, run in batches."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modules.files import files_by_name
from modules.images import IMAGE_SUFFIXES, image_files, open_image
from modules.shard import Shard
from preprocess import dataset_images
from preprocess.sources import Task, stamp
from preprocess.wd14 import WD14

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """The images of a directory."""

    tasks: list[Task]
    missing: list[str]
    """A line for each image that buckets.json lists and that isn't there."""
    is_dataset: bool


@dataclass(frozen=True)
class Outcome:
    """What the tagger gave for an image.

    Neither values nor error: the content is that of the task's `earlier` entry, only the file's
    date is new.
    """

    task: Task
    entry: dict[str, Any]
    values: np.ndarray | None = None
    error: str = ""


def find_images(directory: Path, shard: Shard) -> Images:
    """Find the images that buckets.json lists, or else all of a folder and its sub-folders.

    Names are paths without suffix; in a plain folder the first image of a name is taken. Only
    images of the shard are returned.

    Raises:
        ValueError: there is no such directory, or it holds no images.
    """
    if (directory / "buckets.json").is_file():
        listed, missing = dataset_images.find_images(directory, shard)
        return Images(
            [_make_task(task.name, task.path) for task in listed], missing, is_dataset=True
        )
    count = len(image_files(directory))
    if not count:
        raise ValueError(f"{directory}: holds no images (png, jpg, webp, bmp, avif, tiff, ...)")
    files = files_by_name(directory, IMAGE_SUFFIXES)
    if len(files) < count:
        logger.info(
            "%s: %d images are left out, others have their names up to the suffix",
            directory,
            count - len(files),
        )
    found = sorted((name, suffix) for name, suffix in files.items() if shard.owns(name))
    tasks = [_make_task(name, directory / (name + suffix)) for name, suffix in found]
    return Images(tasks, [], is_dataset=False)


def run_tagger(
    tagger: WD14, tasks: Sequence[Task], *, batch_size: int, num_workers: int | None
) -> Iterator[Outcome]:
    """Yield what became of each task; threads decode the next images while the tagger runs.

    Raises:
        ValueError: the tagger can't be run.
    """
    workers = max(1, min(os.cpu_count() or 1, 8) if num_workers is None else num_workers)
    with ThreadPoolExecutor(workers) as readers:
        batch: list[Outcome] = []
        try:
            for outcome in _decode_ahead(tagger, tasks, readers, ahead=2 * workers + batch_size):
                if outcome.values is None:
                    yield outcome
                    continue
                batch.append(outcome)
                if len(batch) == batch_size:
                    yield from _run_batch(tagger, batch)
                    batch = []
            if batch:
                yield from _run_batch(tagger, batch)
        finally:
            readers.shutdown(cancel_futures=True)


def _make_task(name: str, path: Path) -> Task:
    return Task(name, name + path.suffix, path)


def _decode_ahead(
    tagger: WD14, tasks: Iterable[Task], readers: ThreadPoolExecutor, *, ahead: int
) -> Iterator[Outcome]:
    """Yield the tasks' prepared images in order, while `readers` decode the next ones."""
    waiting: deque[Future[Outcome]] = deque()
    for task in tasks:
        waiting.append(readers.submit(_decode, task, tagger))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _decode(task: Task, tagger: WD14) -> Outcome:
    """Read and prepare one image; runs in a thread."""
    entry: dict[str, Any] = {"name": task.name}
    try:
        entry |= stamp(task.path)
        with task.path.open("rb") as file:
            entry["image_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        earlier = task.earlier
        if earlier is not None and earlier["image_sha256"] == entry["image_sha256"]:
            return Outcome(task, {**earlier, **entry})
        return Outcome(task, entry, values=tagger.prepare(open_image(task.path)))
    except (ValueError, OSError, MemoryError) as error:
        return Outcome(task, entry, error=str(error) or f"{task.path}: {type(error).__name__}")


def _run_batch(tagger: WD14, batch: Sequence[Outcome]) -> Iterator[Outcome]:
    images = [outcome.values for outcome in batch if outcome.values is not None]
    for outcome, values in zip(batch, tagger.run(images), strict=True):
        if np.isfinite(values).all():
            yield replace(outcome, values=values)
        else:
            error = f"{outcome.task.path}: the tagger's output isn't finite; remove the image"
            yield replace(outcome, values=None, error=error)
