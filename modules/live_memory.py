"""How many bytes live at once, counted while operators run, on the meta device or any other."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MANY = 1009
"""Images of the batch that is traced. A prime that no other size is a multiple of, so that each
tensor's size tells whether it grows with the batch; on the meta device it costs nothing."""

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 256)
"""Numbers of images for which the highest moment is kept; between them one of these is nearest."""


@dataclass(frozen=True)
class Line:
    """Bytes at one moment: `fixed`, and so many for each image of the batch."""

    fixed: int = 0
    each: int = 0

    def at(self, images: int) -> int:
        """Bytes with so many images."""
        return self.fixed + images * self.each


@dataclass(frozen=True)
class Peak:
    """The most bytes of a phase, for every number of images: one of the moments in it."""

    moments: Sequence[Line] = (Line(),)

    def at(self, images: int) -> int:
        """Bytes with so many images."""
        return max(moment.at(images) for moment in self.moments)

    def without(self, size: int) -> Peak:
        """The peak if so many bytes less had been made at its moments, where they were."""
        return Peak(tuple(Line(max(0, m.fixed - size), m.each) for m in self.moments))


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operators make, from their making to their end.

    What was there before counts nothing, unless it is added.

    Args:
        images: of the batch that is traced; a storage that is a multiple of them grows with it.
    """

    def __init__(self, images: int = MANY):
        super().__init__()
        self.images = images
        self.fixed = self.each = 0  # bytes now
        self._highest = dict.fromkeys(_COUNTS, Line())
        self._known: dict[int, Any] = {}  # storages' numbers
        self._held: list[Tensor] = []  # what counts nothing; its storages' numbers stay taken

    @property
    def peak(self) -> Peak:
        """The most that lived at once so far."""
        return Peak(tuple(set(self._highest.values())))

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count nothing for the storages of these, which are counted elsewhere."""
        for tensor in tensors:
            self._held.append(tensor)
            self._known[tensor.untyped_storage()._cdata] = None

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count these, which were there before, as long as they live."""
        for tensor in tensors:
            self._note(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        output = _shaped(function, args, kwargs)
        if output is None:
            output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, list | tuple) else (output,):
            if isinstance(value, Tensor):
                self._note(value)
        return output

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._known:
            return
        each, rest = divmod(storage.nbytes(), self.images)
        line = Line(storage.nbytes(), 0) if rest else Line(0, each)
        self._known[number] = weakref.ref(storage, partial(self._drop, number, line))
        self.fixed += line.fixed
        self.each += line.each
        self._look()

    def _drop(self, number: int, line: Line, _reference: Any) -> None:
        del self._known[number]
        self.fixed -= line.fixed
        self.each -= line.each

    def _look(self) -> None:
        """Keep this moment where with some number of images it is the highest yet."""
        fixed, each = self.fixed, self.each
        for images, highest in self._highest.items():
            if fixed + images * each > highest.at(images):
                self._highest[images] = Line(fixed, each)


_ATEN = torch.ops.aten
_ALIKE = {
    *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.mul.Scalar),
    *(_ATEN.add.Scalar, _ATEN.div.Scalar, _ATEN.neg.default, _ATEN.silu.default),
    *(_ATEN.silu_backward.default, _ATEN.gelu.default, _ATEN.gelu_backward.default),
    *(_ATEN.sigmoid.default, _ATEN.sigmoid_backward.default),
}
"""Operators whose result is like their first argument, where the others are like it or numbers."""


def _shaped(function: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """The result of a few frequent operators on `meta`, whose own way there is slow, or None."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.is_meta:
        return None
    if function in _ALIKE and first.is_floating_point():
        others = [a for a in args[1:] if isinstance(a, Tensor)]
        if all(a.shape == first.shape and a.dtype == first.dtype for a in others):
            return torch.empty_like(first)
    if function is _ATEN._to_copy.default and set(kwargs) == {"dtype"}:
        return torch.empty_like(first, dtype=kwargs["dtype"])
    if function is _ATEN.native_layer_norm.default:
        rows = first.shape[: first.ndim - len(args[1])]
        shape = (*rows, *[1] * len(args[1]))
        sums = [first.new_empty(shape, dtype=torch.float32) for _ in range(2)]
        return (torch.empty_like(first, memory_format=torch.contiguous_format), *sums)
    return None


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def stored(module: torch.nn.Module) -> list[Tensor]:
    """All parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]
