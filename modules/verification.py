"""Checking what was written: the tensors of a file against those that it should hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

FP16_LIMIT = torch.finfo(torch.float16).max
_MARGIN = 1.01  # a bound is computed in float32 itself


@dataclass(frozen=True)
class Verified:
    """What was found out about a file."""

    keys: int
    """Names in it, all of them known and in their place."""
    max_error: float
    """The greatest relative error of a tensor, or of the change that a layer's tensors make."""

    def __str__(self) -> str:
        digits, _, exponent = f"{self.max_error:.0e}".partition("e")
        error = f"{digits}e{int(exponent)}" if self.max_error else "0"
        return f"verified: {self.keys}/{self.keys} keys, max error {error}"


class Comparison:
    """Compares tensors of a file, number by number, on the device where the live ones are.

    Nothing waits for the device before `result`.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._measured: list[Tensor] = []

    @torch.no_grad()
    def add(
        self, name: str, found: Tensor, expected: Tensor, *, allowed: Tensor, noise: Tensor | None
    ) -> None:
        """Compare two tensors of one shape; `allowed` is how far each number may be off.

        `noise` is what is not counted as error: how exactly the comparison itself can be computed.
        """
        off = (found - expected).abs_()
        excess = (off - allowed).flatten()
        worst = excess.argmax()  # NaN comes first
        values = [each.flatten()[worst] for each in (excess, found, expected)]
        counted = off if noise is None else off.sub_(noise).clamp_(min=0)
        values += [counted.norm(), expected.norm()]
        self._names.append(name)
        self._measured.append(torch.stack(values))

    def add_tensor(self, name: str, stored: Tensor, live: Tensor) -> None:
        """Compare a tensor of a file, as it was read, with the live one.

        Raises:
            ValueError: their shapes differ, or the file's is not finite.
        """
        check_shape(name, tuple(stored.shape), tuple(live.shape))
        check_finite(name, stored)
        if not live.numel():
            return
        expected, found = live.detach().float(), stored.to(live.device).float()
        kind = stored.dtype if stored.is_floating_point() else torch.float32
        self.add(name, found, expected, allowed=rounding(expected.abs(), kind), noise=None)

    def add_file(
        self, path: Path, live: Mapping[str, Tensor], *, dtype: torch.dtype, where: str = ""
    ) -> int:
        """Compare a .safetensors file with live tensors by their names in it, one by one.

        Returns the number of names; `where` stands before them in errors.

        Raises:
            ValueError: as `add_tensor`; or a name is missing or strange, or of another dtype.
        """
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            check_names(keys, live, where=where)
            for key in keys:
                name, stored = where + key, file.get_tensor(key)
                check_dtype(name, stored.dtype, dtype if live[key].is_floating_point() else None)
                self.add_tensor(name, stored, live[key])
        return len(keys)

    def result(self, *, keys: int) -> Verified:
        """What was found.

        Raises:
            ValueError: a number is further off than allowed; names it and both values.
        """
        if not self._names:
            return Verified(keys, 0.0)
        device = self._measured[0].device
        measured = torch.stack([each.to(device) for each in self._measured]).tolist()
        for name, (excess, found, expected, off, size) in zip(self._names, measured, strict=True):
            if not excess <= 0:
                share = f"{off / size:.1%} of it" if size else "and it is zero here"
                raise ValueError(
                    f"{name}: is {found:.6g} in the file where {expected:.6g} was trained; the "
                    f"whole differs by {share}"
                )
        return Verified(keys, max(off / size if off else 0.0 for *_, off, size in measured))


def rounding(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """How far numbers of these magnitudes are off at most once they are written in `dtype`.

    Half of the last place: a share of 2^-24 of the number in fp32, 2^-11 in fp16 and 2^-8 in bf16;
    below the smallest normal number, half of the smallest there is.
    """
    kind = torch.finfo(dtype)
    return magnitude * (kind.eps / 2) + kind.smallest_normal * kind.eps / 2


def relaxed(bound: Tensor) -> Tensor:
    """A bound that was itself computed with rounding errors."""
    return bound * _MARGIN


def check_finite(name: str, stored: Tensor) -> None:
    """Check a tensor as it was read from a file.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if stored.is_floating_point() and not torch.isfinite(stored).all():
        limit = (
            f"; fp16 ends at {FP16_LIMIT:.0f}, write save.dtype: bf16 or fp32"
            if stored.dtype == torch.float16
            else ""
        )
        raise ValueError(f"{name}: is not finite in the file{limit}")


def check_names(found: Collection[str], expected: Collection[str], *, where: str = "") -> None:
    """Check that a file has these names and no others.

    Raises:
        ValueError: one is missing or strange.
    """
    there, wanted = set(found), set(expected)
    for name in expected:
        if name not in there:
            raise ValueError(f"{where}{name}: was to be written, and is missing")
    for name in found:
        if name not in wanted:
            raise ValueError(f"{where}{name}: was written, and should not be there")


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError if a tensor has another shape in the file than it should."""
    if found != expected:
        raise ValueError(f"{name}: has shape {found} in the file where {expected} was trained")


def check_dtype(name: str, found: torch.dtype, expected: torch.dtype | None) -> None:
    """Raise ValueError if a tensor is of another dtype in the file; None takes any."""
    if expected is not None and found != expected:
        raise ValueError(f"{name}: is {found} in the file, not {expected}")
