"""The images and captions that a dataset is made from: found, named, recognised."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modules.caption_lines import FILE, packed_names
from modules.captions import CAPTION_SUFFIXES, find_caption
from modules.dataset_folder import RESULTS
from modules.files import files_by_name, write_atomically
from modules.images import image_files
from modules.store import LocalStore

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM[1-9¹²³]|LPT[1-9¹²³])(\..*)?", re.IGNORECASE)
_LONGEST = 235
"""Bytes of a name; most systems allow 255, and a suffix or two are put behind it."""


def find_images(source: Path, target: Path) -> list[tuple[str, Path]]:
    """List the images of `source` as (path within it, path), without those that `target` holds.

    Raises:
        ValueError: there are none, or they are where results are written.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: is a file; name a directory for the output")
    results = [target / folder for folder in RESULTS]
    if any(source.resolve().is_relative_to(folder.resolve()) for folder in results):
        raise ValueError(f"{source}: is where results of {target} are written; name another output")
    is_inside = target.resolve() != source.resolve()
    files = image_files(source, exclude=[target] if is_inside else results)
    if not files:
        raise ValueError(f"{source}: holds no images (png, jpg, webp, bmp, avif, tiff, ...)")
    return files


@dataclass(frozen=True)
class Task:
    """A source image, the name it gets, and what an earlier run wrote down about it."""

    name: str
    source: str  # within the source directory, with forward slashes
    path: Path
    earlier: dict[str, Any] | None = None


def name_images(files: Sequence[tuple[str, Path]]) -> list[Task]:
    """Give each file its path without suffix as its name, or with it (a/cat_png) if that is taken.

    Case makes no difference, since it makes none to the files of some systems; what they don't
    allow in a name is an underscore.
    """
    taken: set[str] = set()
    tasks = []
    for relative, path in files:
        stem, suffix = os.path.splitext(relative)
        stem = "/".join(map(_portable, stem.split("/")))
        name = stem
        while name.casefold() in taken:
            name = f"{stem}_{suffix[1:]}" if name == stem else f"{name}_"
        taken.add(name.casefold())
        tasks.append(Task(name, relative, path))
    return tasks


def _portable(part: str) -> str:
    """A part of a path as every system can have it, Windows with its devices and drives too."""
    part = _FORBIDDEN.sub("_", part).encode("utf-8")[:_LONGEST].decode("utf-8", "ignore")
    bare = part.rstrip(". ")
    part = bare + "_" * (len(part) - len(bare))
    return f"_{part}" if _DEVICE.fullmatch(part) else part


def copy_caption(task: Task, *, source: Path, target: Path) -> bool:
    """Copy an image's caption into the dataset, under the image's name, if it is new or newer.

    Returns whether the image has one.
    """
    beside = find_caption(task.path.parent, task.path.stem, folders=(".", "captions"))
    stem = os.path.splitext(task.source)[0]
    caption = beside or find_caption(source, stem, folders=("captions",))
    if caption is None:
        return False
    if _is_packed(task.name, target, newer_than=caption):
        return True
    copy = target / "captions" / f"{task.name}{caption.suffix}"
    if not copy.exists() or copy.stat().st_mtime_ns < caption.stat().st_mtime_ns:
        write_atomically(copy, caption.read_bytes())
        for suffix in CAPTION_SUFFIXES:  # a caption that the new one replaces would win otherwise
            if suffix != caption.suffix:
                copy.with_suffix(suffix).unlink(missing_ok=True)
    return True


def find_idle_captions(tasks: Sequence[Task], *, source: Path, target: Path) -> list[str]:
    """Name the caption files of `source` that are no image's, as cat.png.txt isn't that of cat.png.

    A README.txt is one of them.
    """
    stems = {os.path.splitext(task.source)[0] for task in tasks}
    is_inside = target.resolve() != source.resolve()
    exclude = [target] if is_inside else [target / folder for folder in RESULTS]
    files = files_by_name(source, CAPTION_SUFFIXES, exclude=exclude)
    return sorted(
        name + suffix
        for name, suffix in files.items()
        if name not in stems and _image_of(name) not in stems
    )


def _image_of(name: str) -> str:
    """The image that a caption in a folder `captions` is for: sub/captions/cat is of sub/cat."""
    parts = name.split("/")
    if parts[0] == "captions":
        return "/".join(parts[1:])
    return "/".join([*parts[:-2], parts[-1]]) if parts[-2:-1] == ["captions"] else name


def _is_packed(name: str, target: Path, *, newer_than: Path) -> bool:
    """Say whether captions.jsonl has an image's caption and is newer than a file."""
    lines = target / FILE
    if not lines.is_file() or lines.stat().st_mtime_ns < newer_than.stat().st_mtime_ns:
        return False
    return name in _packed_names(target)


@cache
def _packed_names(target: Path) -> set[str]:
    return packed_names(LocalStore(target))


def stamp(path: Path) -> dict[str, int]:
    """Return a file's size and time of change, by which it's known without being read."""
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
