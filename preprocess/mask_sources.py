"""Where masks come from: faces that are found, transparency, or mask images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from modules.files import files_by_name
from modules.images import IMAGE_SUFFIXES, Size, open_alpha, open_image, resize_and_crop
from modules.journal import Journal
from preprocess.dataset_images import Task
from preprocess.faces import find_faces, load_cascade, widen


@dataclass(frozen=True)
class MaskTask:
    """An image's bucket, and the file that its mask is made from."""

    name: str
    size: Size
    path: Path
    image: Path
    """The dataset's, which the mask is for."""
    original_size: Size | None = None


class MaskSource(Protocol):
    """Finds the files that masks are made from, and reads them; is sent to worker processes."""

    @property
    def settings(self) -> dict[str, Any]:
        """What masks depend on beside their files."""
        ...

    def find(self, images: Sequence[Task]) -> tuple[list[MaskTask], list[str]]:
        """Return the files of those images that have one, and a line for each fault."""
        ...

    def read(self, task: MaskTask) -> np.ndarray | None:
        """Return weights (H, W), 0 to 1, of the bucket's size; None if there is nothing to mask."""
        ...


@dataclass(frozen=True, kw_only=True)
class Faces:
    """1 within the boxes of faces, 0 beside them."""

    cascade: Path
    margin: float
    min_neighbors: int
    min_size: int

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "from": "faces",
            "cascade": _hash_file(self.cascade),
            "margin": self.margin,
            "min_neighbors": self.min_neighbors,
            "min_size": self.min_size,
        }

    def find(self, images: Sequence[Task]) -> tuple[list[MaskTask], list[str]]:
        return [MaskTask(image.name, image.size, image.path, image.path) for image in images], []

    def read(self, task: MaskTask) -> np.ndarray | None:
        image = open_image(task.path)
        if image.size != task.size:
            raise ValueError(
                f"{task.path}: size {image.size} is not bucket {task.size}; "
                "run preprocess/bucketing.py again"
            )
        classifier = load_cascade(str(self.cascade))
        faces = find_faces(
            image, classifier, min_neighbors=self.min_neighbors, min_size=self.min_size
        )
        weights = np.zeros((image.height, image.width), dtype=np.float32)
        for face in faces:
            left, top, right, bottom = widen(face, self.margin, image.size)
            weights[top:bottom, left:right] = 1
        return weights if faces else None


@dataclass(frozen=True, kw_only=True)
class Transparency:
    """The alpha channel of the images that bucketing read; it put them on white."""

    originals: Path
    dataset: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"from": "alpha"}

    def find(self, images: Sequence[Task]) -> tuple[list[MaskTask], list[str]]:
        journal = Journal(self.dataset / "images.jsonl")
        tasks, missing = [], []
        for image in images:
            entry = journal.entries.get(image.name, {})
            if not entry.keys() >= {"source", "original_size"}:
                fault = f"{journal.path}: doesn't say which file {image.name} was made from"
                missing.append(f"{fault}; run preprocess/bucketing.py again")
                continue
            path = self.originals / entry["source"]
            if path.is_file():
                tasks.append(MaskTask(image.name, image.size, path, image.path, _size(entry)))
            else:
                missing.append(f"{path}: no such image; bucketing read it from another folder")
        return tasks, missing

    def read(self, task: MaskTask) -> np.ndarray | None:
        alpha = open_alpha(task.path)
        if alpha is None:
            return None
        if alpha.size != task.original_size:
            raise ValueError(
                f"{task.path}: size {alpha.size} was {task.original_size} when the dataset was "
                "made; run preprocess/bucketing.py again"
            )
        return _fit(alpha, task.size)


@dataclass(frozen=True, kw_only=True)
class MaskImages:
    """Pictures in which white is 1 and black is 0."""

    masks: Path
    dataset: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"from": "images"}

    def find(self, images: Sequence[Task]) -> tuple[list[MaskTask], list[str]]:
        entries = Journal(self.dataset / "images.jsonl").entries
        suffixes = files_by_name(self.masks, IMAGE_SUFFIXES)
        tasks = []
        for image in images:
            # The first is how masks are called that lie beside their images.
            names = [name for name in (f"{image.name}-masklabel", image.name) if name in suffixes]
            if names:
                path = self.masks / (names[0] + suffixes[names[0]])
                original_size = _size(entries.get(image.name, {}))
                tasks.append(MaskTask(image.name, image.size, path, image.path, original_size))
        if images and not tasks:
            raise ValueError(
                f"masks: {self.masks} has no mask for any image; the one of {images[0].name} "
                f"would be {self.masks / images[0].name}.png"
            )
        return tasks, []

    def read(self, task: MaskTask) -> np.ndarray | None:
        mask = open_image(task.path).convert("L")
        original = task.original_size or mask.size
        if mask.size != task.size and not _have_one_shape(mask.size, original):
            raise ValueError(
                f"{task.path}: size {mask.size} is the shape neither of the image, {original}, "
                f"nor of its bucket, {task.size}"
            )
        return _fit(mask, task.size)


def _fit(mask: Image.Image, size: Size) -> np.ndarray:
    """Resize and crop a mask as bucketing did with its image; averaging, so that no edge rings."""
    fitted, _, _ = resize_and_crop(mask, size, resample=Image.Resampling.BOX)
    return np.asarray(fitted, dtype=np.float32) / 255  # (H, W)


def _size(entry: dict[str, Any]) -> Size | None:
    size = entry.get("original_size")
    return (size[0], size[1]) if size else None


def _have_one_shape(size: Size, other: Size) -> bool:
    """Say whether one is the other scaled, to a pixel of the larger."""
    scale = max(size[0] / other[0], size[1] / other[1])
    return all(abs(a - b * scale) <= max(1, scale) for a, b in zip(size, other, strict=True))


@lru_cache(maxsize=1)
def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
