"""Where a dataset's files lie: a local folder, or any place that fsspec reaches (s3://, gs://)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from modules.files import files_by_name, suffixes_by_name
from modules.masking import without_credentials

REMOTE_MARK = "://"
"""What the address of a remote dataset has in it, and no local path."""


class Store(Protocol):
    """Read access to the files of one directory, by their paths within it, with forward slashes.

    Writing it in a message gives the directory.
    """

    def is_file(self, file: str) -> bool:
        """Say whether there is such a file."""

    def read(self, file: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a file's bytes from `start` to `end`, and no others are fetched.

        Raises:
            OSError: it can't be read.
        """

    def lines(self, file: str) -> Iterator[bytes]:
        """Yield a file's lines with their ends."""

    def reader(self, file: str) -> Callable[[int, int], bytes]:
        """Return a function of start and end for many small reads; a remote file is held whole."""

    def files_by_name(self, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
        """Map each file's path within `folder`, without suffix, to its suffix."""


def is_remote(path: str | Path) -> bool:
    """Say whether a dataset's path is an address for fsspec."""
    return REMOTE_MARK in str(path)


def open_store(path: str | Path) -> Store:
    """Open the directory at a local path or an address.

    Raises:
        ValueError: there is none, or no package for such addresses.
    """
    if is_remote(path):
        return RemoteStore(str(path))
    if not Path(path).is_dir():
        raise ValueError(f"{path}: no such directory")
    return LocalStore(Path(path))


def refuse_remote(store: Store, features: Sequence[str]) -> None:
    """Refuse what is read from local directories only.

    Raises:
        ValueError: the dataset is a remote one, and one of `features` is asked for.
    """
    if features and is_remote(str(store)):
        raise ValueError(
            f"{store}: {', '.join(features)}: for local directories only; copy or mount the "
            "dataset, or leave it out"
        )


class LocalStore:
    """A folder of this machine, or mounted there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __str__(self) -> str:
        return str(self.directory)

    def is_file(self, file: str) -> bool:
        return (self.directory / file).is_file()

    def read(self, file: str, start: int = 0, end: int | None = None) -> bytes:
        # Nothing is kept open: opening costs microseconds, and workers share no position.
        with open(self.directory / file, "rb") as opened:
            opened.seek(start)
            return opened.read(-1 if end is None else end - start)

    def lines(self, file: str) -> Iterator[bytes]:
        with open(self.directory / file, "rb") as opened:
            yield from opened

    def reader(self, file: str) -> Callable[[int, int], bytes]:
        return partial(self.read, file)

    def files_by_name(self, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
        return files_by_name(self.directory / folder, suffixes)


class RemoteStore:
    """A directory at an address such as s3://bucket/dataset, through fsspec.

    Credentials are those of the package behind the address: its environment variables and files.
    Ones that stand in the address are told to nobody.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None  # process, file system, root within it
        try:
            file_system, root = self._open()
            is_there = file_system.isdir(root)
        except ImportError as error:  # fsspec names the package
            raise ValueError(f"{self}: {error}; pip install it") from error
        except ValueError as error:
            raise ValueError(f"{self}: is no address that fsspec knows ({error})") from error
        except Exception as error:  # each file system has errors of its own
            raise ValueError(f"{self}: can't be reached ({error})") from error
        if not is_there:
            raise ValueError(f"{self}: no such directory")

    def __str__(self) -> str:
        return without_credentials(self.address)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def is_file(self, file: str) -> bool:
        file_system, root = self._open()
        return file_system.isfile(f"{root}/{file}")

    def read(self, file: str, start: int = 0, end: int | None = None) -> bytes:
        file_system, root = self._open()
        return file_system.cat_file(f"{root}/{file}", start=start, end=end)

    def lines(self, file: str) -> Iterator[bytes]:
        yield from io.BytesIO(self.read(file))

    def reader(self, file: str) -> Callable[[int, int], bytes]:
        return partial(_cut, self.read(file))

    def files_by_name(self, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
        file_system, root = self._open()
        start = f"{root}/{folder}" if folder != "." else root
        try:
            found = file_system.find(start)
        except FileNotFoundError:  # most file systems find nothing in what isn't there
            return {}
        return suffixes_by_name((path[len(start) :].lstrip("/") for path in found), suffixes)

    def _open(self) -> tuple[Any, str]:
        """Return the file system, opened anew in a worker: its connections don't outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            self._opened = (os.getpid(), *fsspec.url_to_fs(self.address))
        return self._opened[1:]


def _cut(content: bytes, start: int, end: int) -> bytes:
    return content[start:end]
