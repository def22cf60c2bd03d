"""Files that are complete or absent: atomic writes and folder listings."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write `path` so that it holds all of `content` or, after a kill, what it held before.

    Text is written as UTF-8 with Unix line ends; a callable gets the open binary file. Missing
    parent folders are made.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it takes that name if no error is raised.

    For writers that want a path, e.g. safetensors' `save_file`; it ends as `path` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the file's name, which may already have the greatest length allowed, nor from
    # the process: those of several machines may write into one directory.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp{path.suffix}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a file of safetensors would be readable for its owner alone
        _sync_file(temporary)
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory that takes the name `path` if no error is raised.

    What had that name goes only when the new one is whole and on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    temporary, former = path.parent / f".{token}.tmp", path.parent / f".{token}.old.tmp"
    try:
        temporary.mkdir()
        yield temporary
        share_files(temporary)
        for entry in temporary.rglob("*"):
            if entry.is_file():
                _sync_file(entry)
            elif entry.is_dir():
                _sync_directory(entry)
        _sync_directory(temporary)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left unfinished in a directory that nobody writes to now."""
    for entry in directory.glob(".*.tmp*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def share_files(directory: Path) -> None:
    """Let everybody read the files of a directory who may read a new file in it."""
    probe = directory / f".{secrets.token_hex(8)}.tmp"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def walk_files(directory: Path, *, exclude: Collection[Path] = ()) -> Iterator[str]:
    """Yield every file's path within `directory`, with forward slashes, sorted in each folder.

    Links to folders are followed, each real folder is entered once; hidden files and folders and
    those in `exclude` are left out; so are, with a warning, links that lead nowhere and
    names that are not UTF-8.

    Raises:
        ValueError: `directory` is not a directory.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory")
    entered = {os.path.realpath(path) for path in exclude}
    yield from _walk(str(directory), "", entered)


def files_by_name(
    directory: Path, suffixes: Sequence[str], *, exclude: Collection[Path] = ()
) -> dict[str, str]:
    """Map each file's path within `directory`, without suffix, to its suffix.

    The first of `suffixes` (lower case, with the dot) wins where a name has several; a directory
    that doesn't exist holds no files.
    """
    if not directory.is_dir():
        return {}
    return suffixes_by_name(walk_files(directory, exclude=exclude), suffixes)


def suffixes_by_name(paths: Iterable[str], suffixes: Sequence[str]) -> dict[str, str]:
    """Map each of `paths` without its suffix to its suffix, as `files_by_name` does."""
    found: dict[str, str] = {}
    ranks = {suffix: rank for rank, suffix in enumerate(suffixes)}
    for path in paths:
        name, suffix = os.path.splitext(path)
        rank = ranks.get(suffix.lower())
        if rank is not None and rank < ranks.get(found.get(name, "").lower(), len(ranks)):
            found[name] = suffix
    return found


def parse_lines(lines: Iterable[bytes], file: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a journal's lines one by one; a last line that is torn is left out.

    Raises:
        ValueError: another line is no JSON object with a name; tells which of `file`.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry.get("name"), str):
                raise ValueError("an entry without a name")
        except (ValueError, AttributeError, RecursionError) as error:
            if not line.endswith(b"\n"):
                return  # torn by a kill
            raise ValueError(
                f"{file}, line {number}: is not a JSON object with a name; delete the line, or the "
                "file to start anew"
            ) from error
        yield entry


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Put a directory's names on the disk; Windows does it by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems know no such thing
    finally:
        os.close(descriptor)


def _walk(directory: str, prefix: str, entered: set[str]) -> Iterator[str]:
    real = os.path.realpath(directory)
    if real in entered:
        return
    entered.add(real)
    with os.scandir(directory) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if fault := _find_fault(entry):
            _warn(entry.path, fault)
        elif entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", entered)
        elif entry.is_file():
            yield prefix + entry.name


def _find_fault(entry: os.DirEntry[str]) -> str:
    """Say why an entry can't be used, if it can't."""
    if not entry.name.isprintable() and any("\ud800" <= char <= "\udfff" for char in entry.name):
        return "its name is not UTF-8; rename it"  # no list of names could hold it
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "a link that leads nowhere; mend or remove it"
    return ""


@cache
def _warn(path: str, fault: str) -> None:
    """Say once that an entry is left out; a folder is walked several times."""
    logger.warning("%s: is left out, %s", ascii(path)[1:-1], fault)
