"""The images and captions that a dataset is made from: found, named, recognised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.captions import CAPTION_SUFFIXES, find_caption
from modules.dataset_folder import RESULTS
from modules.files import write_atomically
from modules.images import image_files


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

    Case makes no difference, since it makes none to the files of some systems.
    """
    taken: set[str] = set()
    tasks = []
    for relative, path in files:
        stem, suffix = os.path.splitext(relative)
        name = stem
        while name.casefold() in taken:
            name = f"{stem}_{suffix[1:]}" if name == stem else f"{name}_"
        taken.add(name.casefold())
        tasks.append(Task(name, relative, path))
    return tasks


def copy_caption(task: Task, *, source: Path, target: Path) -> bool:
    """Copy an image's caption into the dataset, under the image's name, if it is new or newer.

    Returns whether the image has one.
    """
    beside = find_caption(task.path.parent, task.path.stem, folders=(".", "captions"))
    stem = os.path.splitext(task.source)[0]
    caption = beside or find_caption(source, stem, folders=("captions",))
    if caption is None:
        return False
    copy = target / "captions" / f"{task.name}{caption.suffix}"
    if not copy.exists() or copy.stat().st_mtime_ns < caption.stat().st_mtime_ns:
        write_atomically(copy, caption.read_bytes())
        for suffix in CAPTION_SUFFIXES:  # a caption that the new one replaces would win otherwise
            if suffix != caption.suffix:
                copy.with_suffix(suffix).unlink(missing_ok=True)
    return True


def stamp(path: Path) -> dict[str, int]:
    """Return a file's size and time of change, by which it's known without being read."""
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
