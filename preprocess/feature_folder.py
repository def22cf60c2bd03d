"""A directory of image features: the index of its images, and the name of their tagger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modules.files import write_atomically
from modules.journal import Journal
from modules.shard import Shard
from preprocess.sources import Task
from preprocess.wd14_files import TaggerFiles
from preprocess.wd14_images import Outcome


class FeatureFolder:
    """The features of one tagger: <name>.npz, index.jsonl, and tagger.json with its name.

    Raises:
        ValueError: `directory` is a file, or one of its own files is damaged.
    """

    def __init__(self, directory: Path, files: TaggerFiles, shard: Shard) -> None:
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory}: is a file; name a directory for the output")
        self.directory = directory
        self._files = files
        self._json = directory / "tagger.json"
        self._known = self._read_tagger()
        self._journal = Journal(directory / "index.jsonl", shard)

    def path(self, name: str) -> Path:
        """Return the file of an image's features."""
        return self.directory / f"{name}.npz"

    def is_foreign(self, tasks: Sequence[Task]) -> bool:
        """Say whether there are features of the images that aren't known to be this tagger's."""
        if self._known.get("sha256") == self._files.sha256:
            return False
        names = {task.name for task in tasks} | self._journal.entries.keys()
        return any(self.path(name).is_file() for name in names)

    def describe_tagger(self) -> str:
        """Return the name of the tagger whose features are here."""
        return str(self._known.get("tagger", "an unknown tagger"))

    def find(self, task: Task) -> dict[str, Any] | None:
        """Return the entry of an image's features if they are there and of this tagger."""
        entry = self._journal.entries.get(task.name)
        if entry is None or entry.get("tagger_sha256") != self._files.sha256:
            return None
        return entry if self.path(task.name).is_file() else None

    def clear(self, tasks: Sequence[Task]) -> None:
        """Remove the features, so that no stop can leave a mixture of two taggers'."""
        for name in {task.name for task in tasks} | self._journal.entries.keys():
            self.path(name).unlink(missing_ok=True)
        self._journal.entries = {}
        self._journal.rewrite()
        self._json.unlink(missing_ok=True)
        self._known = {}

    def write(self, outcome: Outcome) -> None:
        """Write an image's features; without any, remove those of its earlier content."""
        name = outcome.task.name
        if outcome.error:
            self._journal.entries.pop(name, None)
            self.path(name).unlink(missing_ok=True)
            return
        if outcome.values is not None:
            self._write_tagger(len(outcome.values))
            write_atomically(self.path(name), partial(np.savez, controll=outcome.values))
        self._journal.append([{**outcome.entry, "tagger_sha256": self._files.sha256}])

    def close(self) -> None:
        """Sort the index."""
        if self._journal.entries or self._journal.exists:
            self._journal.rewrite()

    def _read_tagger(self) -> dict[str, Any]:
        if not self._json.exists():
            return {}
        try:
            content = json.loads(self._json.read_text(encoding="utf-8"))
            return dict(content)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self._json}: can't be read ({error}); remove it") from error

    def _write_tagger(self, features: int) -> None:
        if self._known.get("sha256") == self._files.sha256:
            return
        self._known = {"tagger": self._files.id, "sha256": self._files.sha256, "features": features}
        write_atomically(self._json, json.dumps(self._known, indent=1) + "\n")
