"""What scripts note beside the files they make of images: whose content, and made by what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modules.files import parse_lines
from modules.store import Store

INDEX = "index.jsonl"
"""The file of notes in a folder of such files."""

MADE_BY = ("vae", "dtype", "posterior", "flipped", "tagger_sha256")
"""What an entry says of its maker; beside it stand the image's `image_sha256` and its stamp."""


class CacheNotes:
    """A folder's index.jsonl in columns by the images' numbers; 52 bytes for each image.

    Raises:
        ValueError: a line of it is malformed.
    """

    def __init__(self, store: Store, folder: str, names: Sequence[str]) -> None:
        self.folder = folder
        count = len(names)
        self.makers: list[tuple[Any, ...]] = []
        """What made the files, in the order of `MADE_BY`."""
        self.made_by = np.full(count, -1, dtype=np.int32)
        """Each image's maker; -1 if nothing is noted of it."""
        self.sizes = np.full(count, -1, dtype=np.int64)  # bytes
        self.times = np.zeros(count, dtype=np.int64)  # of change, in ns
        self.digests = np.zeros((count, 32), dtype=np.uint8)  # SHA-256 of the image's file
        file = f"{folder}/{INDEX}"
        self.exists = store.is_file(file)
        if not self.exists:
            return
        numbers = {name: number for number, name in enumerate(names)}
        codes: dict[tuple[Any, ...], int] = {}
        # Line by line: the entries of a million images would take gigabytes.
        for entry in parse_lines(store.lines(file), f"{store}/{file}"):
            if (number := numbers.get(entry["name"])) is None:
                continue
            try:
                digest = bytes.fromhex(entry["image_sha256"])
                self.digests[number] = np.frombuffer(digest, dtype=np.uint8)
                self.sizes[number], self.times[number] = entry["bytes"], entry["mtime_ns"]
                if "vae" in entry:  # there was no choice before it was noted
                    entry = {"posterior": "sample", **entry}
                maker = tuple(entry.get(key) for key in MADE_BY)
                self.made_by[number] = codes.setdefault(maker, len(codes))
            except (KeyError, TypeError, ValueError, OverflowError):
                self.made_by[number] = -1  # another program's line
        self.makers = list(codes)

    @property
    def known(self) -> np.ndarray:
        """For each image whether it is noted."""
        return self.made_by >= 0

    def which(self, key: str) -> list[Any]:
        """What each maker says of a key of `MADE_BY`."""
        return [maker[MADE_BY.index(key)] for maker in self.makers]

    def differs(self, other: CacheNotes) -> np.ndarray:
        """For each image whether two folders' files are of another image or made in another way."""
        both = self.known & other.known
        same = np.zeros((len(self.makers) + 1, len(other.makers) + 1), dtype=bool)
        for row, mine in enumerate(self.makers):
            for column, theirs in enumerate(other.makers):
                same[row, column] = mine[:3] == theirs[:3]
        alike = same[self.made_by, other.made_by] & (self.digests == other.digests).all(axis=1)
        return both & ~alike
