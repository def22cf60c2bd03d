"""Latents packed by bucket: latents_packed/<width>x<height>-<number>.safetensors, many in a file.

A file holds one tensor, `latents` (N, C, h, w), and in its metadata the images' names, so that its
header is the index of its rows. An image may be in several; the file with the highest number wins.
outdated.jsonl beside them names images whose rows no longer count, in files before a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from modules.files import parse_lines
from modules.store import LocalStore, Store

OUTDATED = "outdated.jsonl"
"""The file that names rows which no longer count: {"name": ..., "before": number} a line."""

KEY = "latents"
"""The name of a file's tensor."""

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
}
"""The field's names of what latents may be stored as."""

_MOST_HEADER = 100_000_000  # bytes; safetensors reads no longer ones


@dataclass(frozen=True)
class Shard:
    """A file of packed latents, as its header describes it."""

    file: str
    """Path within the dataset."""
    shape: tuple[int, ...]
    """Of one row: C, h, w."""
    dtype: np.dtype
    start: int
    """Of the first row, in bytes."""
    count: int
    """Rows."""

    def read(self, store: Store, row: int) -> np.ndarray:
        """Read one row (C, h, w), and no other byte of the file."""
        size = prod(self.shape) * self.dtype.itemsize
        start = self.start + row * size
        content = store.read(self.file, start, start + size)
        if len(content) != size:
            raise self._cut_short(store)
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def map(self, store: LocalStore) -> np.ndarray:
        """Map all rows (N, C, h, w) into memory; nothing is read before it is asked for."""
        try:
            path, shape = store.directory / self.file, (self.count, *self.shape)
            return np.memmap(path, self.dtype, mode="r", offset=self.start, shape=shape)
        except ValueError as error:
            raise self._cut_short(store) from error

    def _cut_short(self, store: Store) -> ValueError:
        return ValueError(f"{store}/{self.file}: is cut short; delete it and make it again")


def packed_folder(latents: str) -> str:
    """Return the folder of packed latents that belongs to one of single files."""
    return f"{latents}_packed"


def read_shards(store: Store, latents: str) -> list[tuple[Shard, list[str | None]]]:
    """Return the packed files beside the folder `latents` with the names of their rows.

    They are sorted by number; None stands for the name of a row that is outdated.

    Raises:
        ValueError: one is no file of packed latents.
    """
    folder = packed_folder(latents)
    stems = sorted(store.files_by_name(folder, (".safetensors",)), key=shard_number)
    file = f"{folder}/{OUTDATED}"
    outdated: dict[str, int] = {}
    if stems and store.is_file(file):
        lines = parse_lines(store.lines(file), f"{store}/{file}")
        outdated = {line["name"]: line["before"] for line in lines}
    found: list[tuple[Shard, list[str | None]]] = []
    for stem in stems:
        shard, names = _read_header(store, f"{folder}/{stem}.safetensors")
        number, _ = shard_number(stem)
        found.append((shard, [None if number < outdated.get(n, -1) else n for n in names]))
    return found


def shard_number(stem: str) -> tuple[int, str]:
    """Return what files are sorted by: the number at the end of their name."""
    digits = stem.rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else -1, stem)


class PackedLatents:
    """The packed latents of images beside the folder `latents`, as far as there are any.

    Places are held in an array, 8 bytes for each image. Local files are mapped into memory.

    Raises:
        ValueError: a file of packed latents can't be read.
    """

    def __init__(self, store: Store, latents: str, names: Sequence[str]) -> None:
        self._store = store
        shards = read_shards(store, latents)
        self._shards = [shard for shard, _ in shards]
        self._maps: dict[int, np.ndarray] = {}  # of local files, once they have been read
        self._numbers = {name: n for n, name in enumerate(names)} if shards else {}
        self._places = np.full(len(self._numbers), -1, dtype=np.int64)  # shard << 32 | row
        for place, (_, rows) in enumerate(shards):
            numbers = np.array([self._number(name) for name in rows], dtype=np.int64)
            known = np.flatnonzero(numbers >= 0)
            self._places[numbers[known]] = place << 32 | known

    def __contains__(self, name: str) -> bool:
        return self._places[self._numbers[name]] >= 0 if name in self._numbers else False

    def __len__(self) -> int:
        return int((self._places >= 0).sum())

    def leave_out(self, names: Mapping[str, object]) -> None:
        """Forget the images among `names`, which are read from elsewhere."""
        for name in names:
            if name in self._numbers:
                self._places[self._numbers[name]] = -1

    def read(self, name: str) -> np.ndarray:
        """Read an image's latents (C, h, w) as they are stored.

        Raises:
            ValueError: the file can't be read, or is cut short.
        """
        place, row = self._find(name)
        shard = self._shards[place]
        try:
            if not isinstance(self._store, LocalStore):
                return shard.read(self._store, row)
            if place not in self._maps:
                self._maps[place] = shard.map(self._store)
            return self._maps[place][row]
        except OSError as error:
            raise ValueError(f"{self._store}/{shard.file}: can't be read ({error})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an image's latents; nothing is read."""
        return self._shards[self._find(name)[0]].shape

    def files(self) -> list[str]:
        """Return the files that latents are read from."""
        used = np.unique(self._places[self._places >= 0] >> 32)
        return [self._shards[place].file for place in used.tolist()]

    def file(self, name: str) -> str:
        """Return the file that holds an image's latents."""
        return self._shards[self._find(name)[0]].file

    def _number(self, name: str | None) -> int:
        return -1 if name is None else self._numbers.get(name, -1)

    def _find(self, name: str) -> tuple[int, int]:
        """The shard's number and the row."""
        place = int(self._places[self._numbers[name]])
        assert place >= 0, name
        return place >> 32, place & 0xFFFFFFFF

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # each process maps for itself


def _read_header(store: Store, file: str) -> tuple[Shard, list[str]]:
    """Parse a safetensors header: 8 bytes of length, then JSON.

    Read as it stands, so that rows of remote files are a range of bytes, too.
    """
    try:
        length = int.from_bytes(store.read(file, 0, 8), "little")
        if not 2 <= length <= _MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(store.read(file, 8, 8 + length))
        names = json.loads(header["__metadata__"]["names"])
        count, *shape = header[KEY]["shape"]
        dtype = DTYPES[header[KEY]["dtype"]]
        start, end = header[KEY]["data_offsets"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("its names are no texts")
        if len(names) != count or end - start != count * prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(names)} names for {count} rows in {end - start} bytes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{store}/{file}: is no file of packed latents ({error!r}); make it again with "
            "preprocess/pack.py"
        ) from error
    return Shard(file, tuple(shape), dtype, 8 + length + start, count), names
