"""Caption files: where they are, what stands in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from modules.caption_lines import FILE, CaptionLines
from modules.store import Store

CAPTION_SUFFIXES = (".caption", ".txt")
"""Suffixes of caption files; where an image has both, the first wins."""

_FOLDERS = ("captions", ".", "images")

_IN_LINES = 255  # the place of captions that are in captions.jsonl


def find_caption(directory: Path, name: str, *, folders: Sequence[str] = _FOLDERS) -> Path | None:
    """Return the caption file of the image `name` in the first of `folders` that has one."""
    return next(iter(caption_paths(directory, name, folders=folders)), None)


def caption_paths(directory: Path, name: str, *, folders: Sequence[str] = _FOLDERS) -> list[Path]:
    """Return all caption files of the image `name`; the first one is what is read."""
    paths = (directory / folder / (name + end) for folder in folders for end in CAPTION_SUFFIXES)
    # A long name with a suffix behind it may be too long for any file, an error to `Path.is_file`.
    return [path for path in paths if os.path.isfile(path)]


class CaptionFiles:
    """The captions of a dataset's images as they are stored, by the images' numbers.

    They are in captions/, in captions.jsonl, or beside the images of older datasets; where there
    are several the first one counts. A byte for each image says which of the possible places it is.
    """

    def __init__(self, store: Store, names: Sequence[str]):
        self._store = store
        self._names = names
        self._kinds: list[tuple[str, str] | None] = [None]  # folder and suffix
        self._places = np.zeros(len(names), dtype=np.uint8)  # each image's kind
        self._lines: CaptionLines | None = None
        self.idle: list[str] = []
        """Files in captions/ that are no image's."""
        left: Sequence[int] = range(len(names))
        for folder in _FOLDERS:
            if left:
                found = store.files_by_name(folder, CAPTION_SUFFIXES)
                before = len(left)
                left = [number for number in left if not self._place(number, folder, found)]
                if folder == _FOLDERS[0] and before - len(left) < len(found):
                    strange = found.keys() - set(names)
                    self.idle = sorted(f"{folder}/{name}{found[name]}" for name in strange)
            if left and folder == _FOLDERS[0] and store.is_file(FILE):
                self._lines = CaptionLines(store, names)
                self._places[(self._places == 0) & self._lines.known] = _IN_LINES
                left = np.flatnonzero(self._places == 0).tolist()

    @property
    def missing(self) -> list[str]:
        """Names of images without a caption."""
        return [self._names[number] for number in np.flatnonzero(self._places == 0).tolist()]

    def read(self, number: int) -> list[str] | None:
        """An image's captions, None if it has none.

        Raises:
            ValueError: they can't be read.
        """
        if self._places[number] == _IN_LINES:
            assert self._lines is not None
            return self._lines.read(number)
        kind = self._kinds[self._places[number]]
        if kind is None:
            return None
        folder, suffix = kind
        file = f"{folder}/{self._names[number]}{suffix}"
        return parse_captions(self._store.read(file), f"{self._store}/{file}")

    def files(self) -> Iterator[str]:
        """Yield the path of every file that is read, within the dataset."""
        if self._lines is not None and (self._places == _IN_LINES).any():
            yield FILE
        for number, place in enumerate(self._places.tolist()):
            if place not in (0, _IN_LINES):
                folder, suffix = self._kinds[place] or ("", "")
                yield f"{folder}/{self._names[number]}{suffix}"

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
    return parse_captions(path.read_bytes(), path)


def parse_captions(content: bytes, path: Path | str) -> list[str]:
    """Return the captions in a caption file's content; `path` is for the message."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"{path}: is not UTF-8 ({found}); save it as UTF-8") from error
    return [line for line in map(str.strip, text.splitlines()) if line] or [""]
