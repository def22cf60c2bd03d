"""Many files hashed in a process of its own: on a thread they would hold up training.

Reading small files keeps Python's interpreter busy, for which a training step would wait again and
again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from modules.file_hashes import FileHashes

SOON = 2000
"""So many files are hashed in this process before another is started."""

_PATIENCE = 60.0  # seconds, for a file that it is reading
_ROOT = Path(__file__).resolve().parent.parent
_SCRIPT = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import modules.hash_process as p; p.serve()"
)


class BatchHashes:
    """Hashes batches of files; a context, at whose end the other process ends, too."""

    def __init__(self, hashes: FileHashes) -> None:
        self._hashes = hashes
        self._count = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> BatchHashes:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def sha256(self, paths: Sequence[str]) -> list[str | None]:
        """Return the hash of each file, None for one that can't be read."""
        if SOON <= self._count < SOON + len(paths):
            self._begin()
        self._count += len(paths)
        found = self._ask(paths) if self._process is not None else None
        return hash_each(paths, self._hashes) if found is None else found

    def _begin(self) -> None:
        self._hashes.commit()  # or the other process would wait to write what it finds
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="ascii",
            )
        except OSError:
            self._process = None

    def _ask(self, paths: Sequence[str]) -> list[str | None] | None:
        """Let the other process hash files; None if it doesn't answer, now or ever again."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([os.path.abspath(path) for path in paths]) + "\n")
            self._process.stdin.flush()
            found = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self._end()
            return None
        return found

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # Closing its input is not enough: workers that were forked meanwhile hold it open.
            process.stdin.write("\n")
            process.stdin.close()
            process.wait(timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        process.stdout.close()


def hash_each(paths: Sequence[str], hashes: FileHashes) -> list[str | None]:
    """Return the hash of each file, None for one that can't be read."""
    found: list[str | None] = []
    for path in paths:
        try:
            found.append(hashes.sha256(path))
        except OSError:
            found.append(None)
    return found


def serve() -> None:
    """Answer lines of paths with lines of hashes, until one is empty or the input ends."""
    if hasattr(os, "nice"):
        os.nice(10)
    with closing(FileHashes()) as hashes:
        while (line := sys.stdin.readline()).strip():
            print(json.dumps(hash_each(json.loads(line), hashes)), flush=True)
