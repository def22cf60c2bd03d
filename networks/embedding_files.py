"""Embedding files of textual inversion, one for each token, as kohya-ss/sd-scripts writes them.

Readers call a token by its file's name. Beside .safetensors, AUTOMATIC1111's .pt is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from networks.files import read_tensors, write_tensors

_KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}  # by the number of text encoders


def file_name(token: str) -> str:
    """How a token is called in file names: `<cat-toy>` -> `cat-toy`."""
    return re.sub(r"[^\w-]+", "-", token).strip("-_")


def find_embedding(path: Path, name: str) -> Path:
    """The file of a token in a directory; a path that is a file is this file.

    Raises:
        ValueError: the directory has no such file.
    """
    if not path.is_dir():
        return path
    names = [f"{name}{suffix}" for suffix in (".safetensors", ".pt")]
    for each in names:
        if (path / each).is_file():
            return path / each
    raise ValueError(f"{path}: has no {' or '.join(names)}; name the directory of an earlier run")


def read_embedding(file: Path, widths: Sequence[int]) -> list[Tensor]:
    """The vectors of a file, (n, width) for each text encoder.

    Raises:
        ValueError: the file is no embedding, or one for text encoders of other widths.
    """
    tensors: Mapping[Any, Any] = read_tensors(file)
    inner = tensors.get("string_to_param")  # AUTOMATIC1111's .pt
    tensors = inner if isinstance(inner, Mapping) else tensors
    keys = _KEYS[len(widths)] if len(widths) > 1 else tuple(tensors)
    found = [tensors[key] for key in keys if isinstance(tensors.get(key), Tensor)]
    if len(found) != len(widths):
        raise ValueError(
            f"{file}: is no embedding for {len(widths)} text encoder(s); it has "
            f"{', '.join(map(str, tensors)) or 'nothing'}"
        )
    vectors = [torch.atleast_2d(tensor) for tensor in found]
    expected = [(len(vectors[0]), width) for width in widths]
    shapes = [tuple(each.shape) for each in vectors]
    if shapes != expected:
        raise ValueError(
            f"{file}: has vectors of shape {', '.join(map(str, shapes))}, this model's would have "
            f"{', '.join(map(str, expected))}; it is for another kind of model"
        )
    return vectors


def write_embedding(
    file: Path, rows: Sequence[Tensor], *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write a token's vectors, (n, width) for each text encoder."""
    write_tensors(file, named_rows(rows), dtype=dtype, metadata=metadata)


def named_rows(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """A token's vectors by their names in a file."""
    return dict(zip(_KEYS[len(rows)], rows, strict=True))


def check_encoders(count: int) -> None:
    """Check that there is a file format for so many text encoders.

    Raises:
        ValueError: there is none.
    """
    if count not in _KEYS:
        raise ValueError(f"tokens can't be written for {count} text encoders, only for 1 or 2")
