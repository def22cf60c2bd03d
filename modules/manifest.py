"""The manifest of a dataset: every file that a run reads of it, with its hash."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from modules.dataset_facts import prepared_parts
from modules.file_hashes import FileHashes
from modules.hash_process import BatchHashes
from modules.prepared_dataset import PreparedDataset
from modules.store import is_remote

FILE = "manifest.jsonl"
"""A run's manifest in its folder."""

MOST_EMBEDDED = 2000
"""A manifest of so many files is written into the files of the run, too."""

_BATCH = 1000


@dataclass(frozen=True)
class Total:
    """What a manifest says of all files together."""

    sha256: str
    files: int
    unread: int
    """Files whose content is not hashed: remote ones, and those that could not be read."""


def write_manifest(datasets: Mapping[str, Any], file: BinaryIO, hashes: FileHashes) -> Total | None:
    """Write a line for each dataset and each of its files; None if none tells its files.

    `datasets` are those of the run by their section; `file` is new. The hash of all is over names
    and contents in the datasets' order, not over where the datasets lie.
    """
    parts = [
        (section, name, part)
        for section, dataset in datasets.items()
        for name, part in prepared_parts(dataset)
    ]
    for section, name, part in parts:
        root = str(part.store)
        _write(file, {"dataset": section, "name": name, "path": root})
        with BatchHashes(hashes) as batch_hashes:
            files = dataset_files(part)
            while batch := list(islice(files, _BATCH)):
                paths = [f"{root}/{each}" for each in batch]
                found = [None] * len(batch) if is_remote(root) else batch_hashes.sha256(paths)
                for each, sha256 in zip(batch, found, strict=True):
                    _write(file, {"file": each, "sha256": sha256})
    file.seek(0)
    return total_of(file) if parts else None


def total_of(lines: Iterable[bytes]) -> Total:
    """Return what the lines of a manifest say of all files together.

    Raises:
        ValueError: a line is none of a manifest.
    """
    digest, files, unread, before = hashlib.sha256(), 0, 0, None
    for listed in read_manifest(lines):
        if (listed.section, listed.root) != before:
            before = listed.section, listed.root
            digest.update(f"\0{listed.section}\n".encode())
        digest.update(f"{listed.file}\0{listed.sha256}\n".encode("utf-8", "surrogatepass"))
        files += 1
        unread += listed.sha256 is None
    return Total(digest.hexdigest(), files, unread)


def dataset_files(dataset: PreparedDataset) -> Iterator[str]:
    """Yield the path of every file that is read of a dataset, within its directory."""
    yield dataset.index_file
    if dataset.geometry is not None:
        yield "images.jsonl"
    yield from dataset.captions.files()
    yield from dataset.side_inputs.files()
    if dataset.text is not None:
        yield from (f"text/{name}.npz" for name in dataset.names)
    yield from getattr(dataset, "image_files", tuple)()


def pack_manifest(lines: bytes) -> str:
    """Compress a manifest so that it can be a value of metadata."""
    return base64.b64encode(zlib.compress(lines, 9)).decode()


def unpack_manifest(text: str) -> bytes:
    """Return what `pack_manifest` was given.

    Raises:
        ValueError: it is something else.
    """
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the manifest can't be read ({error})") from error


@dataclass(frozen=True)
class Listed:
    """A file as a manifest lists it."""

    section: str
    """Of the config: dataset, prior."""
    root: str
    """The dataset's path, as the config has it."""
    file: str
    sha256: str | None

    @property
    def path(self) -> str:
        """Where it lies."""
        return f"{self.root}/{self.file}"


def read_manifest(lines: Iterable[bytes]) -> Iterator[Listed]:
    """Yield the files that a manifest lists.

    Raises:
        ValueError: a line is none of a manifest.
    """
    section = root = ""
    for line in lines:
        try:
            entry = json.loads(line)
            if "file" in entry:
                yield Listed(section, root, entry["file"], entry["sha256"])
            else:
                section, root = entry["dataset"], entry["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the manifest has a line {line[:80]!r}, which is none") from error


def _write(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    file.write(json.dumps(entry).encode() + b"\n")
