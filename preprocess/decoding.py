"""Images decoded in threads, some batches ahead of the VAE that encodes them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import ImageOps

from modules.images import open_image, to_tensor
from preprocess.dataset_images import Task
from preprocess.latent_index import LatentIndex
from preprocess.sources import stamp

if TYPE_CHECKING:
    from torch import Tensor

_BATCHES_AHEAD = 3  # decoded, or being decoded, while one is encoded


@dataclass(frozen=True)
class Decoded:
    """A task's image, or None with an error, or None because only the file's date is new."""

    entry: dict[str, Any]
    pixel_values: Tensor | None = None  # (3, H, W)
    error: str = ""


def decode_ahead(
    batches: Iterable[Sequence[Task]], readers: ThreadPoolExecutor, index: LatentIndex
) -> Iterator[list[Decoded]]:
    """Yield the batches' images in order, while `readers` decode the next ones."""
    waiting: deque[list[Future[Decoded]]] = deque()
    for batch in batches:
        waiting.append([readers.submit(_decode, task, index) for task in batch])
        if len(waiting) > _BATCHES_AHEAD:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def _decode(task: Task, index: LatentIndex) -> Decoded:
    """Read one image; runs in a thread."""
    entry: dict[str, Any] = {"name": task.name, **index.key}
    try:
        entry |= stamp(task.path)
        with task.path.open("rb") as file:
            entry["image_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        earlier = index.find(task)
        if earlier is not None and earlier["image_sha256"] == entry["image_sha256"]:
            return Decoded(entry)
        image = open_image(task.path)
    except (ValueError, OSError) as error:
        return Decoded(entry, error=str(error))
    if image.size != task.size:
        return Decoded(
            entry,
            error=f"{task.path}: size {image.size} is not bucket {task.size}; "
            "run preprocess/bucketing.py again",
        )
    return Decoded(entry, to_tensor(ImageOps.mirror(image) if index.is_flipped else image))
