"""SHA-256 of files, remembered in the user's cache folder; no torch."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_WEIGHTS = (".safetensors", ".bin")
_PIECES = ("model_index.json", "unet", "text_encoder", "tokenizer", "vae", "scheduler")
"""Beginnings of the names of what is read of a diffusers model."""
_SETTLED = 2.0  # seconds after which a file that is written again has another time
_BATCH = 1000  # hashes that are written to disk at once


class FileHashes:
    """Hashes files; one whose size and time of change are as before is not read again.

    What is remembered is a convenience: where it can't be kept, files are read each time. It
    belongs to the thread that made it.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._new = 0
        self._known: sqlite3.Connection | None = None
        try:
            file = cache_folder() / "hashes.sqlite" if file is None else file
            file.parent.mkdir(parents=True, exist_ok=True)
            self._known = sqlite3.connect(file, timeout=10)
            self._known.execute(
                "CREATE TABLE IF NOT EXISTS hashes"
                " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT)"
            )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def sha256(self, path: Path | str) -> str:
        """Return a file's hash.

        Raises:
            OSError: it can't be read.
        """
        key = os.path.abspath(path)
        stat = os.stat(key)
        if (known := self._find(key, stat)) is not None:
            return known
        with open(key, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - stat.st_mtime > _SETTLED:
            self._remember(key, stat, found)
        return found

    def commit(self) -> None:
        """Keep what was found so far."""
        if self._known is not None:
            try:
                self._known.commit()
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Keep what was found, and end."""
        self.commit()
        if self._known is not None:
            self._known.close()
            self._known = None

    def _find(self, key: str, stat: os.stat_result) -> str | None:
        if self._known is None:
            return None
        try:
            query = "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?"
            row = self._known.execute(query, (key, stat.st_size, stat.st_mtime_ns)).fetchone()
        except (sqlite3.Error, UnicodeError) as error:
            self._give_up(error)
            return None
        return row[0] if row else None

    def _remember(self, key: str, stat: os.stat_result, sha256: str) -> None:
        if self._known is None:
            return
        try:
            row = (key, stat.st_size, stat.st_mtime_ns, sha256)
            self._known.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", row)
            self._new += 1
            if self._new % _BATCH == 0:  # another run may wait for its turn
                self.commit()
        except (sqlite3.Error, UnicodeError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.info("hashes of files are not remembered (%s)", error)
        if self._known is not None:
            self._known.close()
            self._known = None


def cache_folder() -> Path:
    """Return the user's folder for what can be made again: SD_TRAINER_CACHE, or the system's."""
    if own := os.environ.get("SD_TRAINER_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "sd-trainer"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sd-trainer"


def find_weights(path: str) -> Path | None:
    """Return the file or directory of a path or hub id as far as it is on this machine."""
    for place in (Path(path), _ROOT / path):
        if place.exists():
            return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (OSError, ValueError):  # the hub's own errors are of these
        return None


def hash_weights(place: Path, hashes: FileHashes) -> str:
    """Hash a file, or of a directory the names and contents of what is read of it.

    Raises:
        OSError: it can't be read.
    """
    if place.is_file():
        return hashes.sha256(place)
    digest = hashlib.sha256()
    for file in sorted(_files_of(place)):
        digest.update(f"{file}\0{hashes.sha256(place / file)}\n".encode())
    return digest.hexdigest()


def _files_of(directory: Path) -> Iterator[str]:
    """Yield the files of a model's directory: configs, vocabularies and one kind of weights."""
    names = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if (directory / "model_index.json").is_file():  # other pieces may have been downloaded, or not
        names = [name for name in names if name.parts[0].startswith(_PIECES)]
    for folder in {name.parent for name in names}:
        inside = [name for name in names if name.parent == folder]
        weights = [name for name in inside if name.suffix in _WEIGHTS]
        safe = [name for name in weights if name.suffix == _WEIGHTS[0]] or weights
        plain = [name for name in safe if "." not in name.stem] or safe  # .fp16. is another
        for name in inside:
            is_weight = name.suffix in _WEIGHTS
            if name in plain or (not is_weight and name.suffix in (".json", ".txt", ".model")):
                yield name.as_posix()
