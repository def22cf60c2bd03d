"""Tensors out of a file of `torch.save` in which anything may stand, without running any of it.

A pickle is a program for a small machine that can call whatever Python function it names. Here it
can name nothing: `find_class` never imports, it gives stand-ins of this module only, whose
attributes can't be set. Those for tensors note numbers and do no more; all others do nothing. Only
when the pickle is through are the noted tensors made, their bounds checked. What is left to a
hostile file is to waste time and memory.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint by name, and the kinds of objects that were left out.

    Raises:
        ValueError: it is no zip archive of `torch.save`, or its tensors don't fit their data.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it has no data.pkl")
            with archive.open(pickles[0]) as stream:
                reader = _Reader(stream)
                content = reader.load()
            data = _Data(archive, pickles[0].removesuffix("data.pkl"))
            return {k: data.tensor(v) for k, v in _tensors(content)}, sorted(reader.ignored)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file}: is no zip archive as torch.save writes it ({error})") from error
    except Exception as error:  # what a broken or hostile pickle can raise has no end
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"{file}: can't be read ({reason})") from error


class _Sealed:
    """An object whose attributes a pickle can't set."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} can't be set")

    def __setstate__(self, *_: object) -> None: ...


class Inert(_Sealed):
    """Stands for an object of any class; whatever is done to it has no effect."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object): ...

    def __new__(cls, *_: object, **__: object) -> Inert:
        return object.__new__(cls)

    def __call__(self, *_: object, **__: object) -> Inert:
        return self

    def __setitem__(self, *_: object) -> None: ...

    def append(self, *_: object) -> None:
        """Leave out an item of a list."""

    def extend(self, *_: object) -> None:
        """Leave out the items of a list."""

    def add(self, *_: object) -> None:
        """Leave out an item of a set."""


class _Dict(dict):
    """Stands for OrderedDict; attributes that a pickle gives it are left out."""

    __slots__ = ()

    def __setstate__(self, *_: object) -> None: ...


class _Named(_Sealed):
    """Stands for what torch calls `name`; called, it notes what it was called with."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        object.__setattr__(self, "name", name)

    def __call__(self, *arguments: object) -> _Note:
        return _Note(self, arguments)


class _Note(_Sealed):
    """A call of a `_Named`, or a reference to data, to be looked into afterwards."""

    __slots__ = ("arguments", "maker")

    def __init__(self, maker: object, arguments: tuple[object, ...]):
        object.__setattr__(self, "maker", maker)
        object.__setattr__(self, "arguments", arguments)


_REBUILD, _PARAMETER = _Named("_rebuild_tensor_v2"), _Named("_rebuild_parameter")
_STORAGES = {name: _Named(name) for name in _DTYPES}


class _Reader(pickle.Unpickler):
    """Reads a checkpoint's pickle; `ignored` collects the names that got an `Inert`."""

    known: ClassVar[Mapping[tuple[str, str], object]] = {
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor_v2"): _REBUILD,
        ("torch._utils", "_rebuild_parameter"): _PARAMETER,
        **{("torch", name): storage for name, storage in _STORAGES.items()},
    }

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.ignored: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = self.known.get((module, name))
        if found is None:
            self.ignored.add(ascii(f"{module}.{name}")[1:-1][:100])  # it goes to a terminal
        return Inert if found is None else found

    def persistent_load(self, pid: Any) -> Any:
        return _Note(None, pid if type(pid) is tuple else ())


def _tensors(content: object) -> list[tuple[str, _Note]]:
    """The noted tensors of a state dict, which may lie below `state_dict`, by name."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, dict) else ()
    found = []
    for name, value in entries:
        if isinstance(value, _Note) and value.maker is _PARAMETER:
            value = value.arguments[0]
        if isinstance(name, str) and isinstance(value, _Note) and value.maker is _REBUILD:
            found.append((name, value))
    return found


class _Layout(NamedTuple):
    """Where a tensor lies in its data."""

    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self, count: int) -> bool:
        """Whether it lies within so many numbers, and is no more than they are."""
        if 0 in self.sizes:
            return self.start <= count
        steps = zip(self.sizes, self.strides, strict=True)
        last = self.start + sum((size - 1) * stride for size, stride in steps)
        return last < count and math.prod(self.sizes) <= count


class _Data:
    """The data files of a checkpoint's archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")

    def tensor(self, note: _Note) -> Tensor:
        """Make the tensor that was noted.

        Raises:
            ValueError: what was noted is no tensor, or lies beyond its data.
        """
        storage, start, sizes, strides, *_ = note.arguments
        numbers = self._numbers(storage)
        layout = _Layout(_counts((start,))[0], _counts(sizes), _counts(strides))
        if len(layout.sizes) != len(layout.strides) or not layout.fits(len(numbers)):
            raise ValueError("a tensor lies beyond the end of its data")
        return numbers.as_strided(layout.sizes, layout.strides, layout.start).clone()

    def _numbers(self, storage: object) -> Tensor:
        if not isinstance(storage, _Note) or storage.maker is not None:
            raise ValueError("a tensor has no data")
        kind, cls, key, *_ = storage.arguments
        name = next((name for name, own in _STORAGES.items() if own is cls), None)
        if kind != "storage" or name is None or type(key) is not str:
            raise ValueError("a tensor's data are of an unknown kind")
        entry = self._archive.getinfo(f"{self._root}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a tensor's data are compressed, which torch.save never does")
        data = bytearray(self._archive.read(entry))
        dtype = _DTYPES[name]
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _counts(values: object) -> tuple[int, ...]:
    if type(values) is not tuple or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError("a tensor's shape is no numbers")
    return values
