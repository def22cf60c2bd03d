"""How often a dataset's images stand in an epoch; sd-scripts' folders `10_sks dog/` can say it."""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from modules.dataset_files import list_names

logger = logging.getLogger(__name__)

FOLDERS: Literal["folders"] = "folders"

_FOLDER = re.compile(r"([1-9]\d*)_([^/]*)/")


def folder_words(name: str) -> str:
    """The words behind the number of an image's folder: `sks dog` of `10_sks dog/img001`."""
    match = _FOLDER.match(name)
    return match[2].strip() if match else ""


class Repeats:
    """A number for all images, or `folders`: the one in front of the name of each image's folder.

    Images of a folder without a number count once, with a warning.

    Raises:
        ValueError: the number is less than 1.
    """

    def __init__(self, directory: Path, names: Sequence[str], repeats: int | Literal["folders"]):
        self._images = len(names)
        self.of_folders: dict[str, Counter[int]] = {}
        if repeats == FOLDERS:
            counts = [self._count(name) for name in names]
            self._counts = np.array(counts, dtype=np.int64)
            self._warn(directory)
            return
        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(
                f"repeats: {repeats!r} is neither a number from 1 on, which is once an epoch, nor "
                f"{FOLDERS}"
            )
        self._counts = np.broadcast_to(np.int64(repeats), len(names))

    def spread(self, numbers: range) -> Sequence[int]:
        """The indices that stand for a bucket's images in an epoch, which begin with `numbers`.

        The next time that an image comes, its index is greater by the number of all images.
        """
        counts = self._counts[numbers.start : numbers.stop]
        if counts.max() == 1:
            return numbers
        own = np.arange(numbers.start, numbers.stop)
        times = [own[counts > time] + time * self._images for time in range(counts.max())]
        return array("q", np.concatenate(times).tobytes())

    def describe(self) -> str:
        """Images times repeats, as in `30 x 10 + 68 x 1`."""
        times = sorted(Counter(self._counts.tolist()).items(), reverse=True)
        return " + ".join(f"{images} x {repeats}" for repeats, images in times)

    def summary(self) -> list[str]:
        """How many images an epoch has, in one line; none if each comes once."""
        total = int(self._counts.sum())
        if not self.of_folders and total == self._images:
            return []
        folders = [
            f"{folder or 'in no folder'} {images} x {repeats}"
            for folder, counts in self.of_folders.items()
            for repeats, images in counts.items()
        ]
        counted = list_names(folders) if folders else self.describe()
        return [f"repeats: {counted} = {total} images an epoch"]

    def _count(self, name: str) -> int:
        match = _FOLDER.match(name)
        repeats = int(match[1]) if match else 1
        folder = name.partition("/")[0] if "/" in name else ""
        self.of_folders.setdefault(folder, Counter())[repeats] += 1
        return repeats

    def _warn(self, directory: Path) -> None:
        plain = [folder for folder in self.of_folders if not _FOLDER.match(f"{folder}/")]
        if plain:
            named = [folder or "images in no folder" for folder in plain]
            logger.warning(
                "%s: repeats: folders: there is no number, as in '10_sks dog', in front of: %s; "
                "their images count once",
                *(directory, list_names(named)),
            )
