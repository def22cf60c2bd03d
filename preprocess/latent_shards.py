"""Writing files of packed latents, which `modules.packed_latents` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from modules.files import write_atomically
from modules.packed_latents import DTYPES, KEY


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
