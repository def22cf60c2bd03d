"""images.jsonl in columns: what bucketing noted of each image's source file, size and crop."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.files import parse_lines
from modules.store import Store

SOURCES = "sources.json"
"""The file beside images.jsonl that says where the source images are."""


class ImageRecords:
    """The entries of a dataset's images, by number; 88 bytes for each, and no texts.

    What an entry lacks, or another program's has otherwise, is not known.

    Raises:
        ValueError: a line of images.jsonl is malformed.
    """

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        count = len(names)
        self._names = names
        self._folder = _read_folder(store)
        self._suffixes: list[str] = []
        self._suffix = np.full(count, -1, dtype=np.int16)  # of a source that is called as its image
        self._sources: dict[int, str] = {}  # others
        self.digests = np.zeros((count, 32), dtype=np.uint8)
        """SHA-256 of the source files; zeros if not known."""
        self.sizes = np.full(count, -1, dtype=np.int64)  # bytes of the source files
        self.times = np.zeros(count, dtype=np.int64)  # of their last change, in ns
        self.originals = np.zeros((count, 2), dtype=np.int32)  # width, height; 0 if not known
        self.resized = np.zeros((count, 2), dtype=np.int32)  # before the crop
        self.unlisted: list[str] = []
        """Names of entries that the dataset doesn't have."""
        if not store.is_file("images.jsonl"):
            return
        numbers = {name: number for number, name in enumerate(names)}
        # Line by line: the entries of a million images would take gigabytes.
        for entry in parse_lines(store.lines("images.jsonl"), f"{store}/images.jsonl"):
            if (number := numbers.get(entry["name"])) is not None:
                self._note(number, entry)
            else:
                self.unlisted.append(entry["name"])

    @property
    def hashed(self) -> np.ndarray:
        """For each image whether its source's hash is known."""
        return np.asarray(self.digests.any(axis=1))

    def source(self, number: int) -> str | None:
        """Return the path of an image's source within the folder of sources."""
        if self._suffix[number] >= 0:
            return self._names[number] + self._suffixes[self._suffix[number]]
        return self._sources.get(number)

    def source_folder(self, directory: Path) -> Path | None:
        """Return the folder of sources, if it is noted and there."""
        folder = None if self._folder is None else directory / self._folder
        return folder if folder is not None and folder.is_dir() else None

    def enlargement(self) -> np.ndarray:
        """By what factor each image was enlarged, 1 at least: its bucket is larger than itself."""
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = (self.resized / self.originals).max(axis=1)
        return np.where(self.originals.min(axis=1) > 0, np.maximum(factors, 1), 1)

    def _note(self, number: int, entry: dict) -> None:
        try:
            digest = bytes.fromhex(entry["sha256"])
            self.digests[number] = np.frombuffer(digest, dtype=np.uint8)
            self.originals[number] = entry["original_size"]
            self.resized[number] = entry["resized_size"]
            self.sizes[number], self.times[number] = entry["bytes"], entry["mtime_ns"]
            stem, suffix = os.path.splitext(entry["source"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return
        if stem != self._names[number] or len(self._suffixes) > 1000:
            self._sources[number] = entry["source"]
            return
        if suffix not in self._suffixes:
            self._suffixes.append(suffix)
        self._suffix[number] = self._suffixes.index(suffix)


def describe_sources(directory: Path, sources: Path) -> str:
    """Return the content of sources.json: the way from a dataset to its sources, if there is one.

    A relative one, so that it holds where both were moved or copied together.
    """
    try:
        folder = os.path.relpath(sources.resolve(), directory.resolve()).replace(os.sep, "/")
    except ValueError:  # another drive
        folder = str(sources.resolve())
    return json.dumps({"folder": folder}, ensure_ascii=False) + "\n"


def _read_folder(store: Store) -> str | None:
    if not store.is_file(SOURCES):
        return None
    try:
        folder = json.loads(store.read(SOURCES).decode("utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a convenience: what can't be read says nothing
    return folder if isinstance(folder, str) else None
