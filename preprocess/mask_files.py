"""Masks on disk: made from a source's weights, each with a note of what it depends on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modules.files import write_atomically
from preprocess.mask_sources import MaskSource, MaskTask
from preprocess.sources import stamp

_NOTE = "made_from"  # a second array in our files, JSON text


@dataclass(frozen=True)
class Outcome:
    """What became of an image's mask."""

    is_empty: bool = False
    """Its source had nothing for it."""
    error: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """What is noted of the dataset's image in index.jsonl."""


@dataclass(frozen=True, kw_only=True)
class MaskMaker:
    """Makes a dataset's masks in one way, in whichever process it is called."""

    source: MaskSource
    directory: Path
    background: float
    empty: float
    """Weight of an image for which the source has nothing."""
    scale_factor: int

    def path(self, name: str) -> Path:
        """Return the file of an image's mask."""
        return self.directory / f"{name}.npz"

    def describe(self, task: MaskTask) -> dict[str, Any]:
        """Return all that an image's mask depends on."""
        return {
            **self.source.settings,
            "background": self.background,
            "empty": self.empty,
            "scale_factor": self.scale_factor,
            "bucket": list(task.size),
            **stamp(task.path),
        }

    def is_of(self, task: MaskTask, note: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
        """Say whether a mask is up to date, by its own note and its image's entry in the index.

        A file whose date alone is new is read, and counts as the same if its content is.
        """
        now = self.describe(task)
        if task.path == task.image:
            note = {**note, **{key: now[key] for key in ("bytes", "mtime_ns")}}  # the entry knows
        if not now.items() <= note.items():
            return False
        current = stamp(task.image)
        if current.items() <= entry.items():
            return True
        return current["bytes"] == entry.get("bytes") and (
            hash_file(task.image) == entry.get("image_sha256")
        )

    def __call__(self, task: MaskTask) -> Outcome:
        """Write an image's mask; a bad image loses what an earlier run wrote for it."""
        try:
            note = self.describe(task)
            entry = {"name": task.name, **stamp(task.image), "image_sha256": hash_file(task.image)}
            weights = self.source.read(task)
        except (ValueError, OSError, MemoryError) as error:
            if read_note(self.path(task.name)):
                self.path(task.name).unlink(missing_ok=True)
            return Outcome(error=str(error) or f"{task.path}: {type(error).__name__}")
        is_empty = weights is None
        if weights is None:
            weights = np.full(task.size[::-1], self.empty, dtype=np.float32)
        mask = _shrink(np.maximum(weights, np.float32(self.background)), self.scale_factor)
        note_array = np.array(json.dumps({**note, "is_empty": is_empty}))
        save = partial(np.savez, arr_0=mask, **{_NOTE: note_array})
        write_atomically(self.path(task.name), save)
        return Outcome(is_empty, entry=entry)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_note(path: Path) -> dict[str, Any] | None:
    """Return what a mask says it depends on: nothing if it isn't ours, None if it isn't there."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays[_NOTE])) if _NOTE in arrays.files else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def _shrink(weights: np.ndarray, factor: int) -> np.ndarray:
    """Average weights (H, W) over squares of `factor` pixels."""
    height, width = weights.shape
    squares = weights.reshape(height // factor, factor, width // factor, factor)
    return squares.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)  # (h, w)
