"""Arrays in the .npy format: what a header claims is held against the file, then believed."""

from __future__ import annotations

from math import prod
from typing import BinaryIO

import numpy as np

MOST_BYTES = 1 << 30
"""Of one array; latents, masks and features of an image have less by far."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(file: BinaryIO, *, size: int) -> np.ndarray:
    """Read an array of numbers from `file`, which has `size` bytes and can be rewound.

    Raises:
        ValueError: it is no such array, or claims more than there is; nothing is allocated then,
            and no pickled object is ever loaded.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"a header of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and loading such can run any code")
    claimed, there = prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != there:
        raise ValueError(f"{there} bytes for an array {shape} of {dtype}, which has {claimed}")
    if claimed > MOST_BYTES:
        raise ValueError(f"an array of {claimed / 1e9:.1f} GB; {MOST_BYTES / 1e9:.1f} are allowed")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
