"""A directory of captions: which of them a tagger wrote, and which a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.caption_lines import packed_names
from modules.captions import CAPTION_SUFFIXES, find_caption
from modules.files import write_atomically
from modules.journal import Journal
from modules.shard import Shard
from modules.store import LocalStore
from preprocess.sources import Task


class CaptionFolder:
    """Captions, and tagger.jsonl: the text that a tagger wrote for which image's content.

    `key` stands for the tagger and its settings. With `dataset`, captions that are elsewhere in
    that directory count too, since ours would take their place. A caption that tagger.jsonl
    doesn't know is a person's, and replaced only with `overwrite`.

    Raises:
        ValueError: `extension` isn't that of a caption, or `directory` is a file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        extension: str,
        key: Mapping[str, Any],
        dataset: Path | None,
        overwrite: bool,
        shard: Shard,
    ) -> None:
        self._suffix = f".{extension.removeprefix('.')}"
        if self._suffix not in CAPTION_SUFFIXES:
            known = " or ".join(CAPTION_SUFFIXES)
            raise ValueError(f"caption_extension: {extension!r} is not {known}")
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory}: is a file; name a directory for the output")
        self._directory = directory
        self._key = key
        self._dataset = dataset
        self._overwrite = overwrite
        self._packed = packed_names(LocalStore(dataset)) if dataset is not None else set()
        self._journal = Journal(directory / "tagger.jsonl", shard)

    def path(self, name: str) -> Path:
        """Return the file of an image's caption."""
        return self._directory / f"{name}{self._suffix}"

    def may_write(self, task: Task) -> bool:
        """Say whether an image has no caption, or one that may be replaced."""
        if self._overwrite or self._is_ours(task.name):
            return True
        if find_caption(self._directory, task.name, folders=(".",)) is not None:
            return False
        if task.name in self._packed:
            return False
        return self._dataset is None or find_caption(self._dataset, task.name) is None

    def recognise(self, task: Task) -> Task:
        """Give a task its earlier entry if its caption is of the same tagger and settings."""
        entry = self._journal.entries.get(task.name)
        is_same = entry is not None and self._key.items() <= entry.items()
        return replace(task, earlier=entry if is_same and self._is_ours(task.name) else None)

    def write(self, entry: Mapping[str, Any], caption: str) -> None:
        """Write a caption; one that `overwrite` replaces is gone if it would win."""
        path = self.path(entry["name"])
        if not self._overwrite:  # ours, of an earlier state, which no kill may leave
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        # First, so that after a kill no caption is taken for a person's.
        self._journal.append([{**entry, **self._key, "caption": caption}])
        write_atomically(path, _to_text(caption))
        if self._overwrite:
            for suffix in CAPTION_SUFFIXES[: CAPTION_SUFFIXES.index(self._suffix)]:
                (self._directory / f"{entry['name']}{suffix}").unlink(missing_ok=True)

    def renew(self, entry: Mapping[str, Any]) -> None:
        """Note the new date of an image whose content is the same."""
        self._journal.append([entry])

    def close(self) -> None:
        """Sort tagger.jsonl."""
        if self._journal.entries:
            self._journal.rewrite()

    def _is_ours(self, name: str) -> bool:
        entry = self._journal.entries.get(name)
        path = self.path(name)
        if entry is None or not path.is_file():
            return False
        return path.read_bytes() == _to_text(entry.get("caption", "")).encode("utf-8")


def _to_text(caption: str) -> str:
    return f"{caption}\n"
