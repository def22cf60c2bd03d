"""Tensors in one file, .safetensors or .ckpt: shapes first, each tensor when it is asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PICKLES = SUFFIXES[1:]


class TensorFile(Protocol):
    """The tensors of a file."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def reading(self) -> AbstractContextManager[Callable[[str], Tensor]]:
        """A context with a function that reads the tensor of a name."""
        ...


def open_tensors(path: Path) -> TensorFile:
    """Open a file; of .safetensors only the header is read, a .ckpt stays on disk where it can.

    Raises:
        ValueError: it can't be read, or holds more than tensors.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: a model in one file ends with one of {', '.join(SUFFIXES)}, not {suffix!r}"
        )
    return PickledTensors(path) if suffix in _PICKLES else Safetensors(path)


def find_file(path: str) -> Path | None:
    """The file that a path names; None if it names a directory or, by its look, a hub id.

    Raises:
        ValueError: it looks like a file of tensors and isn't there.
    """
    file = Path(path)
    if file.is_file():
        return file
    if path.lower().endswith(SUFFIXES) and not file.is_dir():
        raise ValueError(f"{path}: no such file")
    return None


class Safetensors:
    """A .safetensors file, opened only while it is read."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def __init__(self, path: Path):
        from safetensors import safe_open

        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self.metadata = file.metadata() or {}
                names = list(file.keys())
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except Exception as error:  # safetensors has a kind of its own
            raise ValueError(f"{path}: {_reason(error)}") from error

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Tensor]]:
        from safetensors import safe_open

        with safe_open(self._path, "pt") as file:
            yield file.get_tensor


class PickledTensors:
    """A file of `torch.save`; nothing in it is executed.

    Raises:
        ValueError: it holds objects of other kinds; names them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path: Path):
        content = _load(path)
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        content = content if isinstance(content, dict) else {}
        named = {k: v for k, v in content.items() if isinstance(k, str)}
        self._tensors = {k: v for k, v in named.items() if isinstance(v, Tensor)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Tensor]]:
        yield self._tensors.__getitem__


def _load(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:  # before PyTorch 1.6 it was no zip archive
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_foreign(path, error)}") from error
    except Exception as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _foreign(path: Path, error: Exception) -> str:
    """What to say of a file that is more than tensors."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        names = []
    if not names:
        return _reason(error)
    shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return (
        f"holds more than tensors ({shown}), and loading such objects can run any code, so it is "
        f"refused; `python tools/convert.py {path.name} -o {path.stem}.safetensors` takes the "
        "tensors out without running anything"
    )


def _reason(error: Exception) -> str:
    return f"can't be read ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Why a file of tensors can't be read, in a few words.

    torch's own would advise to read a pickle in the way that lets it run code.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it is no pickle of tensors alone, and no other is read"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". ")[0][:200]
