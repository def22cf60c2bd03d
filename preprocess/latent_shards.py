"""Writing files of packed latents, which `modules.packed_latents` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from modules.files import write_atomically
from modules.packed_latents import DTYPES, KEY, OUTDATED, packed_folder, shard_number
from modules.store import LocalStore


def write_shard(
    path: Path,
    names: Sequence[str],
    rows: Iterable[np.ndarray],
    *,
    shape: Sequence[int],
    dtype: str,
) -> None:
    """Write a safetensors file whole or not at all, row by row, so that it's never in memory.

    `shape` (C, h, w) is that of a row, `dtype` safetensors' word for its type.

    Raises:
        ValueError: a row has another shape.
    """
    size = len(names) * prod(shape) * DTYPES[dtype].itemsize
    tensor = {"dtype": dtype, "shape": [len(names), *shape], "data_offsets": [0, size]}
    listed = json.dumps(list(names), ensure_ascii=False)
    header = {"__metadata__": {"names": listed}, KEY: tensor}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the rows begin at a multiple of 8 bytes

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, row in zip(names, rows, strict=True):
            if row.shape != tuple(shape):
                raise ValueError(f"{name}: shape {row.shape} is not that of its file, {shape}")
            file.write(row.astype(DTYPES[dtype]).tobytes())

    write_atomically(path, write)


def next_number(dataset: Path, latents: str) -> int:
    """Return the number of the next file of packed latents beside the folder `latents`."""
    stems = LocalStore(dataset).files_by_name(packed_folder(latents), (".safetensors",))
    return max((shard_number(stem)[0] for stem in stems), default=-1) + 1


def mark_outdated(dataset: Path, latents: str, name: str) -> None:
    """Let an image's packed latents no longer count, since the image is another now."""
    folder = dataset / packed_folder(latents)
    if folder.is_dir():
        line = json.dumps({"name": name, "before": next_number(dataset, latents)})
        with (folder / OUTDATED).open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
