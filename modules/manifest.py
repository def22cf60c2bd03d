"""The manifest of a dataset: every file that a run reads of it, with its hash."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modules.dataset_facts import prepared_parts
from modules.file_hashes import FileHashes
from modules.prepared_dataset import PreparedDataset
from modules.store import is_remote

FILE = "manifest.jsonl"
"""A run's manifest in its folder."""

MOST_EMBEDDED = 2000
"""A manifest of so many files is written into the files of the run, too."""


@dataclass(frozen=True)
class Total:
    """What a manifest says of all files together."""

    sha256: str
    files: int
    unread: int
    """Files whose content is not hashed: remote ones, and those that could not be read."""


def write_manifest(datasets: Mapping[str, Any], file: BinaryIO, hashes: FileHashes) -> Total | None:
    """Write a line for each dataset and each of its files; None if none tells its files.

    `datasets` are those of the run by their section. The hash of all is over names and contents in
    the datasets' order, not over where the datasets lie.
    """
    digest, files, unread = hashlib.sha256(), 0, 0
    parts = [
        (section, name, part)
        for section, dataset in datasets.items()
        for name, part in prepared_parts(dataset)
    ]
    for section, name, part in parts:
        root = str(part.store)
        _write(file, {"dataset": section, "name": name, "path": root})
        digest.update(f"\0{section}\n".encode())
        for each in dataset_files(part):
            sha256 = None if is_remote(root) else _hash(Path(root) / each, hashes)
            _write(file, {"file": each, "sha256": sha256})
            digest.update(f"{each}\0{sha256}\n".encode("utf-8", "surrogatepass"))
            files += 1
            unread += sha256 is None
    return Total(digest.hexdigest(), files, unread) if parts else None


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


def read_manifest(lines: Iterable[bytes]) -> Iterator[tuple[str, str, str | None]]:
    """Yield section and path of a dataset, path of a file within it, and the file's hash.

    Raises:
        ValueError: a line is none of a manifest.
    """
    section = root = ""
    for line in lines:
        try:
            entry = json.loads(line)
            if "file" in entry:
                yield section, f"{root}/{entry['file']}", entry["sha256"]
            else:
                section, root = entry["dataset"], entry["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the manifest has a line {line[:80]!r}, which is none") from error


def _write(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    file.write(json.dumps(entry).encode() + b"\n")


def _hash(path: Path, hashes: FileHashes) -> str | None:
    try:
        return hashes.sha256(path)
    except OSError:
        return None
