"""Caption files: where they are, what stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modules.files import files_by_name

CAPTION_SUFFIXES = (".caption", ".txt")
"""Suffixes of caption files; where an image has both, the first wins."""

_FOLDERS = ("captions", ".", "images")


def find_caption(directory: Path, name: str, *, folders: Sequence[str] = _FOLDERS) -> Path | None:
    """Return the caption file of the image `name` in the first of `folders` that has one."""
    for folder in folders:
        for suffix in CAPTION_SUFFIXES:
            path = directory / folder / (name + suffix)
            if path.is_file():
                return path
    return None


class CaptionFiles:
    """The caption files of a dataset's images, by the images' numbers.

    Files are in captions/, or beside the images of older datasets. A byte for each image says which
    of the possible places it is.
    """

    def __init__(self, directory: Path, names: Sequence[str]):
        self._directory = directory
        self._names = names
        self._kinds: list[tuple[str, str] | None] = [None]  # folder and suffix
        self._places = np.zeros(len(names), dtype=np.uint8)  # each image's kind
        left: Sequence[int] = range(len(names))
        for folder in _FOLDERS:
            if left:
                found = files_by_name(directory / folder, CAPTION_SUFFIXES)
                left = [number for number in left if not self._place(number, folder, found)]

    @property
    def missing(self) -> list[str]:
        """Names of images without a file."""
        return [self._names[number] for number in np.flatnonzero(self._places == 0).tolist()]

    def path(self, number: int) -> Path | None:
        """The file of an image, if it has one."""
        kind = self._kinds[self._places[number]]
        if kind is None:
            return None
        folder, suffix = kind
        return self._directory / folder / (self._names[number] + suffix)

    def _place(self, number: int, folder: str, found: Mapping[str, str]) -> bool:
        suffix = found.get(self._names[number])
        if suffix is None:
            return False
        if (folder, suffix) not in self._kinds:
            self._kinds.append((folder, suffix))
        self._places[number] = self._kinds.index((folder, suffix))
        return True


def read_captions(path: Path) -> list[str]:
    """Return a caption file's captions, one for each line; an empty file holds an empty one.

    Raises:
        ValueError: the file isn't UTF-8 (with or without byte-order mark).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"{path}: is not UTF-8 ({found}); save it as UTF-8") from error
    return [line for line in map(str.strip, text.splitlines()) if line] or [""]
