"""Captions: where their files are, and what becomes of their text before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.files import files_by_name

CAPTION_SUFFIXES = (".caption", ".txt")
"""Suffixes of caption files; where an image has both, the first wins."""


@dataclass(frozen=True, kw_only=True)
class CaptionProcessor:
    """Turn an image's caption into the text that is trained on.

    Raises:
        ValueError: an argument is out of range.
    """

    prefix: str = ""
    """Put before every caption as it stands, e.g. `"anime, "`; never shuffled."""
    shuffle: bool = False
    """Put the tags, which commas separate, in a new order each time."""
    keep_tokens: int = 0
    """So many first tags keep their places."""
    caption_dropout: float = 0.0
    """Probability of an empty caption, without prefix, as classifier-free guidance wants."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout: {self.caption_dropout} is not within 0 and 1")
        if self.keep_tokens < 0:
            raise ValueError(f"keep_tokens: {self.keep_tokens} is negative; use 0 or more")

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        if rng.random() < self.caption_dropout:
            return ""
        if self.shuffle:
            tags = [tag for tag in (part.strip() for part in caption.split(",")) if tag]
            kept, moved = tags[: self.keep_tokens], tags[self.keep_tokens :]
            caption = ", ".join([*kept, *(moved[i] for i in rng.permutation(len(moved)))])
        return self.prefix + caption


def find_caption(
    directory: Path, name: str, *, folders: Sequence[str] = ("captions", ".", "images")
) -> Path | None:
    """Return the caption file of the image `name` in the first of `folders` that has one."""
    for folder in folders:
        for suffix in CAPTION_SUFFIXES:
            path = directory / folder / (name + suffix)
            if path.is_file():
                return path
    return None


def find_captions(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Map those of a dataset's images that have a caption file to its path within the dataset.

    Files are in captions/, or beside the images of older datasets.
    """
    suffixes = files_by_name(directory / "captions", CAPTION_SUFFIXES)
    files = {}
    for name in names:
        if name in suffixes:
            files[name] = f"captions/{name}{suffixes[name]}"
        elif path := find_caption(directory, name):
            files[name] = path.relative_to(directory).as_posix()
    return files


def read_caption(path: Path) -> str:
    """Return a caption file's text, without the white space around it.

    Raises:
        ValueError: the file isn't UTF-8 (with or without byte-order mark).
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"{path}: is not UTF-8 ({found}); save it as UTF-8") from error
