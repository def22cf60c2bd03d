"""The tensors of a file by name, dtype and shape; torch is imported for pickles only."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType

from modules.safetensors_header import read_header

_SCALARS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}
_NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Listed:
    """A tensor as its file lists it."""

    dtype: str  # fp16, or as safetensors calls it
    shape: tuple[int, ...]
    value: float | None = None  # of one with a single number

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    def __int__(self) -> int:
        return int(self.value or 0)


@dataclass(frozen=True)
class Listing:
    """The tensors of a file and what it says of itself."""

    tensors: Mapping[str, Listed]
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    widths: tuple[int, ...] = ()  # of a hypernetwork


def list_tensors(path: Path) -> Listing:
    """List what a .safetensors file, or one of torch's pickles, holds.

    Raises:
        ValueError: it can't be read.
    """
    if path.suffix.lower() == ".safetensors":
        return _list_safetensors(path)
    return _list_pickle(path)


def _list_safetensors(path: Path) -> Listing:
    header = read_header(path)
    found = {}
    with path.open("rb") as file:
        for name, entry in header.tensors.items():
            shape, value = tuple(entry["shape"]), None
            if prod(shape) == 1:
                first, last = entry["data_offsets"]
                file.seek(header.start + first)
                value = _number(entry["dtype"], file.read(last - first))
            found[name] = Listed(_NAMES.get(entry["dtype"], entry["dtype"]), shape, value)
    return Listing(found, header.metadata)


def _number(dtype: str, content: bytes) -> float | None:
    if dtype == "BF16":  # the upper half of a float32
        return struct.unpack("<f", b"\0\0" + content)[0]
    return struct.unpack(_SCALARS[dtype], content)[0] if dtype in _SCALARS else None


def _list_pickle(path: Path) -> Listing:
    """List the tensors of a pickle; nothing in it is executed."""
    import torch
    from torch import Tensor

    from modules.models.tensor_file import reason_of

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises kinds of its own
        raise ValueError(f"{path}: can't be read ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no tensors by name")
    widths = tuple(key for key in content if isinstance(key, int))
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        pairs = value if isinstance(value, list | tuple) else [value]
        for number, each in enumerate(pairs):
            start = f"{key}.{number}." if widths else ("" if key == "state_dict" else f"{key}.")
            if isinstance(each, Tensor):
                flat[str(key)] = each
            elif isinstance(each, dict):
                flat |= {f"{start}{k}": v for k, v in each.items() if isinstance(v, Tensor)}
    names = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    listed = {}
    for name, tensor in flat.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        value = float(tensor) if tensor.numel() == 1 else None
        listed[name] = Listed(names.get(dtype, dtype), tuple(tensor.shape), value)
    told = content.get("metadata") if widths else None
    metadata = {str(key): str(each) for key, each in told.items()} if isinstance(told, dict) else {}
    return Listing(listed, metadata, widths=widths)
