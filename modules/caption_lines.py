"""Captions of all images in one file: captions.jsonl, {"name": ..., "captions": [...]} a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from modules.files import parse_lines
from modules.store import Store

FILE = "captions.jsonl"
"""The file of packed captions in a dataset."""


class CaptionLines:
    """The lines of captions.jsonl, by the images' numbers; 16 bytes of memory for each.

    A text is read when it is asked for; a remote file's are held in memory. The last line of a name
    counts.

    Raises:
        ValueError: a line is malformed.
    """

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        self._bounds = np.zeros((len(names), 2), dtype=np.int64)  # start and end of the line
        bounds: list[tuple[int, int]] = []
        for entry in parse_lines(_measured(store, bounds), f"{store}/{FILE}"):
            texts = entry.get("captions")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                name = entry["name"]
                raise ValueError(f"{store}/{FILE}: captions of {name} are not a list of texts")
            if (number := numbers.get(entry["name"])) is not None:
                self._bounds[number] = bounds[-1]
            bounds.clear()
        self._read = store.reader(FILE)

    @property
    def known(self) -> np.ndarray:
        """For each image whether it has a line."""
        return self._bounds[:, 1] > 0

    def read(self, number: int) -> list[str]:
        """Return an image's captions."""
        start, end = self._bounds[number].tolist()
        return json.loads(self._read(start, end))["captions"] or [""]


def packed_names(store: Store) -> set[str]:
    """Return the names that captions.jsonl has, if there is one."""
    if not store.is_file(FILE):
        return set()
    return {entry["name"] for entry in parse_lines(store.lines(FILE), f"{store}/{FILE}")}


def _measured(store: Store, bounds: list[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the lines of the file, and put start and end of each into `bounds` before."""
    start = 0
    for line in store.lines(FILE):
        bounds.append((start, start + len(line)))
        start += len(line)
        yield line
