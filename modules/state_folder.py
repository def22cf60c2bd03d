"""Directories of a run's state: written whole or not at all, checked before they are read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from modules.files import replacing_directory

_NAME = re.compile(r"state-step(\d{8,})")
_MANIFEST = "manifest.json"


def state_path(directory: Path, step: int) -> Path:
    """Where the state after an optimizer step lies in a run's folder."""
    return directory / f"state-step{step:08d}"


def write_state(path: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Let each writer write its file, and a manifest of them; the directory is there then or not.

    Raises:
        OSError: there is no space, or no permission; what was there before still is.
    """
    with replacing_directory(path) as folder:
        entries = {}
        for name, write in writers.items():
            try:
                write(folder / name)
            except (SafetensorError, RuntimeError) as error:  # what torch and safetensors raise
                raise OSError(str(error).splitlines()[0]) from error
            size = (folder / name).stat().st_size
            entries[name] = {"bytes": size, "sha256": _hash(folder / name)}
        (folder / _MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def check_state(path: Path) -> None:
    """Check that a directory holds all that was written, byte by byte.

    Raises:
        ValueError: it is no state, or a file of it is missing or was changed.
    """
    try:
        entries = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: is no state of a run (its {_MANIFEST} can't be read); name a folder such as "
            "output/<name>, or output/<name>/state-step00001000"
        ) from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path}: is not whole, {name} is missing; resume from another state")
        if _hash(file) != expected:
            raise ValueError(
                f"{file}: is not as it was written (its sha256 differs); resume from another state"
            )


def find_states(directory: Path) -> list[Path]:
    """The states in a run's folder, the newest first."""
    found = [
        (int(match[1]), entry)
        for entry in (directory.iterdir() if directory.is_dir() else ())
        if (match := _NAME.fullmatch(entry.name)) and (entry / _MANIFEST).is_file()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def delete_other_states(directory: Path, kept: Path) -> None:
    """Delete all states of a run's folder but one, and what is left of half deleted ones."""
    for path in directory.iterdir():
        if path != kept and _NAME.fullmatch(path.name):
            # Without its manifest it is no state: one that is half deleted is never resumed from.
            (path / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
