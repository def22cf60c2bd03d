"""The files of a dataset directory: arrays and side inputs, and their shapes by header alone."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from modules.files import files_by_name, parse_lines
from modules.images import IMAGE_SUFFIXES, Size, open_image, read_size, to_tensor
from modules.npy import read_npy
from modules.store import Store

logger = logging.getLogger(__name__)

Kind = Literal["npz", "image"]

LISTED = 10
"""An error names so many images or faults, and counts the rest."""

_ARRAY_NAMES = ("controll", "arr_0")  # the first one's spelling is that of existing pfg files


class SideInput:
    """A folder with one file per image: control/<name>.png, mask/<name>.npz.

    Raises:
        ValueError: `key` is not the name of a folder, or `kind` unknown.
    """

    def __init__(self, directory: Path, key: str, kind: Kind) -> None:
        if kind not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"extras.{key}: {kind!r} is not a kind of file; use one of {kinds}")
        if not key.replace("-", "_").isidentifier():
            raise ValueError(f"extras.{key}: is not a name for a folder; use letters and digits")
        self.key = key
        self.kind = kind
        self.directory = directory
        suffixes = IMAGE_SUFFIXES if kind == "image" else (".npz",)
        self._suffixes = files_by_name(directory / key, suffixes)

    def __contains__(self, name: str) -> bool:
        return name in self._suffixes

    def file(self, name: str) -> str:
        """Return the path of an image's file within the dataset."""
        return f"{self.key}/{name}{self._suffixes[name]}"

    def read(self, name: str) -> Tensor:
        """Return an image as (3, H, W) in 0..1, or an array as it stands; float32."""
        path = self.directory / self.file(name)
        if self.kind == "image":
            return to_tensor(open_image(path), minimum=0.0)
        return read_array(path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array from its header."""
        return read_shape(self.directory / self.file(name))

    def find_odd_shapes(self, names: Sequence[str]) -> Iterator[str]:
        """Yield a fault for each array of another shape than the first one's."""
        if self.kind != "npz" or not names:
            return
        first = self.shape(names[0])
        for name in names:
            if (shape := self.shape(name)) != first:
                yield f"{self.file(name)}: shape {shape} is not {self.file(names[0])}'s {first}"

    def size(self, name: str) -> Size:
        """Return width and height of an image from its header."""
        return read_size(self.directory / self.file(name))


def read_array(path: Path) -> Tensor:
    """Read a .npy file, or the one array of a .npz file, as float32.

    Raises:
        ValueError: the file can't be read; names it.
    """
    with _naming(path), _open_array(path) as (file, size):
        array = read_npy(file, size=size)
        return torch.from_numpy(np.asarray(array, dtype=np.float32))


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read all arrays of a .npz file, as they are.

    Raises:
        ValueError: as `read_array`.
    """
    with _naming(path), zipfile.ZipFile(path) as archive:
        arrays = {}
        for info in archive.infolist():
            with archive.open(info) as member:
                array = read_npy(member, size=info.file_size)  # type: ignore[arg-type]
            arrays[info.filename.removesuffix(".npy")] = torch.from_numpy(array)
        return arrays


def read_mask(masks: SideInput, name: str) -> Tensor:
    """Return an image's mask, (1, h, w).

    Raises:
        ValueError: some weights are not within 0 and 1.
    """
    mask = masks.read(name)
    least, most = float(mask.min()), float(mask.max())
    if not 0 <= least <= most <= 1:
        file = masks.file(name)
        raise ValueError(f"{file}: has weights from {least:g} to {most:g}; they go from 0 to 1")
    return mask[None] if mask.ndim == 2 else mask


def parse_array(content: bytes, path: str) -> Tensor:
    """Return the array in a .npy file's content, as `read_array` does; `path` is for messages."""
    with _naming(path):
        array = read_npy(io.BytesIO(content), size=len(content))
        return torch.from_numpy(np.asarray(array, dtype=np.float32))


def read_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of an array that `read_array` reads, from its header.

    Raises:
        ValueError: as `read_array`.
    """
    with _naming(path), _open_array(path) as (file, _):
        start = file.read(10)
        return _parse_header(start + file.read(int.from_bytes(start[8:], "little")))


def parse_shape(content: bytes, path: str) -> tuple[int, ...]:
    """Return the shape of an array from the beginning of a .npy file; `path` is for messages."""
    with _naming(path):
        return _parse_header(content[: 10 + int.from_bytes(content[8:10], "little")])


@lru_cache
def _parse_header(header: bytes) -> tuple[int, ...]:
    """Parse a header of version 1; most files of a dataset have the same, and it takes long."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its header is not of version 1.0")
    return np.lib.format.read_array_header_1_0(file)[0]


def read_geometry(store: Store, names: Sequence[str]) -> np.ndarray | None:
    """Return height and width before resizing, top and left of the crop, for each image.

    They stand in images.jsonl; None, with a warning, if they don't for one of the images.
    """
    if not store.is_file("images.jsonl"):
        return None
    numbers = {name: number for number, name in enumerate(names)}
    rows = np.full((len(names), 4), -1, dtype=np.int32)
    # Line by line: the entries of a million images would take gigabytes.
    for entry in parse_lines(store.lines("images.jsonl"), f"{store}/images.jsonl"):
        if (number := numbers.get(entry["name"])) is None:
            continue
        try:
            (width, height), (top, left) = entry["original_size"], entry["crop_top_left"]
            rows[number] = (height, width, top, left)
        except (KeyError, TypeError, ValueError, OverflowError):
            rows[number] = -1
    unknown = np.flatnonzero(rows[:, 0] < 0)
    if not len(unknown):
        return rows
    logger.warning(
        "%s/images.jsonl: has no sizes of %s; original sizes are not used, run "
        "preprocess/bucketing.py again to have them",
        store,
        names[unknown[0]],
    )
    return None


def read_origin(folder: Path) -> dict[str, Any]:
    """Return what a script noted of itself beside the files it made, or nothing.

    Raises:
        ValueError: the note can't be read.
    """
    path = folder / "tagger.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read ({error})") from error


def list_names(names: Sequence[str]) -> str:
    """Write names in one line, the first ten of them and a count."""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def raise_faults(directory: object, faults: Sequence[str]) -> None:
    """Raise one ValueError that lists the first ten faults of a dataset and counts the rest."""
    if not faults:
        return
    lines = [f"{directory} is not ready for training:", *faults[:LISTED]]
    if len(faults) > LISTED:
        lines.append(f"and {len(faults) - LISTED} more")
    raise ValueError("\n  ".join(lines))


@contextmanager
def _open_array(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open an array's bytes, and tell how many there are."""
    if path.suffix != ".npz":
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        known = [name for name in _ARRAY_NAMES if name in names]
        if not known and len(names) != 1:
            raise ValueError(f"holds the arrays {names}, none of them is arr_0")
        info = archive.getinfo(f"{[*known, *names][0]}.npy")
        with archive.open(info) as member:
            yield member, info.file_size  # type: ignore[misc]  # read like any binary file


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    try:
        yield
    # zipfile, zlib and numpy answer damaged files with errors of many kinds.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: can't be read ({reason}); make it again") from error
