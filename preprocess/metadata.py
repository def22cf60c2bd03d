"""Captions of many images in one file: metadata.jsonl, or the JSON of sd-scripts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modules.captions import find_caption
from modules.dataset_folder import RESULTS
from modules.files import walk_files, write_atomically
from preprocess.sources import Task, copy_caption, find_idle_captions

logger = logging.getLogger(__name__)

NAMES = ("metadata.jsonl", "metadata.json")
"""What such a file is called, to be found."""

_IMAGE_KEYS = ("file_name", "image", "image_path")
_CAPTION_KEYS = ("text", "caption", "prompt", "additional_feature")
_LISTED = 10


def carry_captions(
    tasks: Sequence[Task],
    finished: Collection[str],
    *,
    source: Path,
    target: Path,
    metadata: Path | None,
) -> None:
    """Bring the captions of the finished images into the dataset.

    A caption file beside an image, or in captions/, wins over metadata: the files of `source` that
    are called so, of which one in a deeper folder wins, and `metadata` over them. A list of
    captions becomes a line each.

    Raises:
        ValueError: `metadata` is no file.
    """
    captions = _read_all(tasks, source=source, target=target, metadata=metadata)
    for task in tasks:
        if task.name not in finished:
            continue
        if not copy_caption(task, source=source, target=target) and task.source in captions:
            _write(captions[task.source], task, target)
    if idle := find_idle_captions(tasks, source=source, target=target):
        logger.info(
            "%s: %d caption files belong to no image and are left: %s",
            *(source, len(idle), _list(idle)),
        )


@dataclass
class _File:
    """What one file of captions says, and what is wrong with it."""

    path: Path
    captions: dict[str, list[str]] = field(default_factory=dict)  # by source
    unknown: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # line numbers or names
    without: int = 0  # entries without a caption

    def report(self) -> None:
        """Say in a line each what it gives and what of it can't be used."""
        logger.info("%s: captions of %d images", self.path, len(self.captions))
        if self.unknown:
            logger.warning(
                "%s: %d of its images are not there: %s",
                *(self.path, len(self.unknown), _list(self.unknown)),
            )
        if self.broken:
            logger.warning(
                "%s: %d entries are left out, they are no object with an image and a text: %s",
                *(self.path, len(self.broken), _list(self.broken)),
            )
        if self.without:
            logger.warning(
                "%s: %d entries have no caption (%s)",
                *(self.path, self.without, ", ".join(_CAPTION_KEYS)),
            )


@dataclass(frozen=True)
class _Caption:
    texts: list[str]
    mtime_ns: int  # of the file that says it


def _read_all(
    tasks: Sequence[Task], *, source: Path, target: Path, metadata: Path | None
) -> dict[str, _Caption]:
    """Return captions by the images' sources."""
    if metadata is not None and not metadata.is_file():
        raise ValueError(f"{metadata}: no such file; name one as metadata.jsonl")
    is_inside = target.resolve() != source.resolve()
    exclude = [target] if is_inside else [target / folder for folder in RESULTS]
    found = [name for name in walk_files(source, exclude=exclude) if Path(name).name in NAMES]
    found.sort(key=lambda name: name.count("/"))
    paths = [source / name for name in found]
    by_path = {task.source: task.source for task in tasks}
    by_stem = {os.path.splitext(task.source)[0]: task.source for task in reversed(tasks)}
    captions: dict[str, _Caption] = {}
    for path in [*paths, *([metadata] if metadata is not None else [])]:
        # One that is named from elsewhere is about the source directory.
        folder = path.parent if path.resolve().is_relative_to(source.resolve()) else source
        file = _File(path)
        for place, entry in _read(file):
            name = _within(entry["image"], folder, source)
            known = by_path.get(name) or by_stem.get(name)
            if known is None:
                file.unknown.append(entry["image"])
            elif texts := _texts(entry):
                file.captions[known] = texts
            elif texts is None:
                file.broken.append(place)
            else:
                file.without += 1
        file.report()
        mtime_ns = path.stat().st_mtime_ns
        captions |= {name: _Caption(texts, mtime_ns) for name, texts in file.captions.items()}
    return captions


def _read(file: _File) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, entry with its `image`) of a file; notes what is no entry."""
    try:
        content = file.path.read_text(encoding="utf-8-sig")
        is_lines = file.path.suffix == ".jsonl"
        values = None if is_lines else json.loads(content)
        if not is_lines and not isinstance(values, Mapping):
            raise ValueError('it must be an object such as {"cat.png": {"caption": "a cat"}}')
    except (OSError, ValueError) as error:
        logger.warning("%s: is not used, it can't be read (%s)", file.path, error)
        return
    if values is not None:
        for name, entry in values.items():
            if isinstance(entry, Mapping):
                yield name, {**entry, "image": name}
            else:
                file.broken.append(name)
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image = next(entry[key] for key in _IMAGE_KEYS if isinstance(entry.get(key), str))
            yield f"line {number}", {**entry, "image": image}
        except (ValueError, AttributeError, StopIteration):
            file.broken.append(f"line {number}")


def _within(name: str, folder: Path, source: Path) -> str:
    """An image's path within `source`, as a file in `folder` names it."""
    path = Path(name.replace("\\", "/") if os.sep == "/" else name)
    absolute = os.path.normpath((folder / path).absolute())
    return PurePosixPath(
        os.path.relpath(absolute, source.absolute()).replace(os.sep, "/")
    ).as_posix()


def _texts(entry: Mapping[str, Any]) -> list[str] | None:
    """An entry's captions, each in one line with its tags behind it; None if they are no text."""
    caption = next((entry[key] for key in _CAPTION_KEYS if entry.get(key)), [])
    tags = entry.get("tags") or ""
    captions = caption if isinstance(caption, list) else [caption]
    if isinstance(tags, list):
        tags = ", ".join(map(str, tags))
    if not all(isinstance(text, str) for text in (*captions, tags)):
        return None
    lines = [" ".join(text.split()) for text in captions]
    tags = " ".join(tags.split())
    joined = [", ".join(filter(None, (line, tags))) for line in lines or [""]]
    return [line for line in joined if line]


def _write(caption: _Caption, task: Task, target: Path) -> None:
    """Write an image's captions, one a line, if they are new or newer."""
    path = find_caption(target, task.name, folders=("captions",))
    if path is None or path.stat().st_mtime_ns < caption.mtime_ns:
        path = path or target / "captions" / f"{task.name}.txt"
        write_atomically(path, "".join(f"{text}\n" for text in caption.texts))


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
