"""Journals of JSON lines, extended by one process or by several without a lock."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modules.files import parse_lines, write_atomically
from modules.shard import Shard, find_parts

Entries = dict[str, dict[str, Any]]

_REMOVED = "removed"  # in a shard's file: what other files say of this name counts no more


class Journal:
    """A JSON-lines file that a long job extends line by line, and reads when it starts again.

    A line that a kill has torn is left out. Entries are dictionaries with a unique `name`. With a
    shard the journal has the names that are the shard's, and writes a file of its own beside
    `path`; without one it has what those files say too, and takes them in when it is rewritten.

    Raises:
        ValueError: a line is no entry.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self.path = path
        self._shard = shard or Shard()
        self._own = self._shard.file_beside(path)
        parts = [file for file in find_parts(path) if file != self._own]
        # `path` is read after them: what another process takes in meanwhile is not missed.
        contents = {file: _read_bytes(file) for file in (*parts, path, self._own)}
        self._taken_in = {file: len(contents[file]) for file in parts}
        self._is_torn = contents[self._own][-1:] not in (b"", b"\n")
        others: Entries = {}
        for file in (path, *parts):
            others |= self._parse(contents[file], file)
        own = self._parse(contents[self._own], self._own) if self._shard.is_part else {}
        self._others = _without_removed(others)
        self.entries = _without_removed(others | own)

    @property
    def exists(self) -> bool:
        """Whether there is a file of it, if only a shard's."""
        return self.path.is_file() or bool(find_parts(self.path))

    def append(self, entries: Collection[Mapping[str, Any]]) -> None:
        """Add entries to the end of the file; a later one replaces an earlier of its name."""
        self.entries.update((entry["name"], dict(entry)) for entry in entries)
        if self._is_torn:  # a line behind a torn one would be lost with it
            self.rewrite()
            return
        with self._own.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(_to_line(entry) for entry in entries))

    def rewrite(self) -> None:
        """Write the file anew with one line for each entry, sorted by name."""
        self.entries = dict(sorted(self.entries.items()))
        lines: list[Mapping[str, Any]] = list(self.entries.values())
        if self._shard.is_part:
            lines = [entry for entry in lines if self._others.get(entry["name"]) != entry]
            gone = sorted(self._others.keys() - self.entries.keys())
            lines += [{"name": name, _REMOVED: True} for name in gone]
        write_atomically(self._own, "".join(_to_line(entry) for entry in lines))
        self._is_torn = False
        if not self._shard.is_part:
            self._remove_parts()

    def _remove_parts(self) -> None:
        """Remove the shards' files that were taken in, but for one that has grown since."""
        for file, size in self._taken_in.items():
            if len(_read_bytes(file)) == size:
                file.unlink(missing_ok=True)
        self._taken_in = {}

    def _parse(self, content: bytes, file: Path) -> Entries:
        entries = parse_lines(io.BytesIO(content), file)
        return {entry["name"]: entry for entry in entries if self._shard.owns(entry["name"])}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _without_removed(entries: Entries) -> Entries:
    return {name: entry for name, entry in entries.items() if not entry.get(_REMOVED)}


def _to_line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
