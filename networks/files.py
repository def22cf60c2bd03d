"""Adapter files: layers of a network to .safetensors and back; .pt files are read too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modules.safetensors_header import fill_in_hashes, with_places

_PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def write_layers(
    path: Path,
    layers: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write the tensors of layers, by their name in files, in `dtype`.

    Magnitudes stay in float32, and an alpha that `dtype` would round: these are a few numbers, and
    the effect is as exact as they are.
    """
    tensors = {f"{n}.{key}": tensor for n, own in layers.items() for key, tensor in own.items()}
    exact = {key: t for key, t in tensors.items() if _must_be_exact(key, t, dtype)}
    rest = {key: t.to(dtype) for key, t in tensors.items() if key not in exact}
    _write(path, {key: {**exact, **rest}[key] for key in tensors}, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt, .pth, .ckpt or .bin file by name.

    Raises:
        ValueError: the file can't be read.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a directory; name the file in it")
    return _read_pickle(path) if path.suffix in _PICKLES else _read_safetensors(path)


def read_named(path: Path) -> dict[str, Tensor]:
    """Read a file as `read_tensors` does, and check that all in it are tensors.

    Raises:
        ValueError: the file can't be read, or something in it is no tensor with a name.
    """
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise ValueError(f"{path}: {str(name)[:100]!r} is no tensor with a name")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a .safetensors file says of itself; a pickled one says nothing.

    Raises:
        ValueError: the file can't be read.
    """
    if path.suffix in _PICKLES:
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write tensors to a .safetensors file, or without metadata to a .pt file."""
    _write(path, {key: tensor.to(dtype) for key, tensor in tensors.items()}, metadata)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file; a .safetensors has its own hashes in its metadata."""
    converted = {key: t.detach().to("cpu").contiguous() for key, t in tensors.items()}
    if path.suffix == ".pt":
        torch.save(converted, path)
    else:
        save_file(converted, path, metadata={"format": "pt", **with_places(metadata)})
        fill_in_hashes(path)


def _must_be_exact(key: str, tensor: Tensor, dtype: torch.dtype) -> bool:
    own = key.rpartition(".")[2]
    rounded = own == "alpha" and not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
    return rounded or own == "dora_scale"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as .safetensors: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, as the original sd-trainer and older programs wrote them."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises kinds of its own
        raise ValueError(f"{path}: is no .pt file of tensors ({type(error).__name__})") from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: holds no layers by name")
    inner = tensors.get("state_dict")
    return inner if isinstance(inner, dict) else tensors
