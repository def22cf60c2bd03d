"""What precision operations run in here: autocast, and its stand-in where torch has none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)


class MetaMode(Protocol):
    """Autocast on the meta device (`modules.meta_autocast`)."""

    dtype: torch.dtype | None
    is_suspended: bool


META_MODES: list[MetaMode] = []
"""Those that are entered, the innermost last."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product with `x` is computed in."""
    device = x.device.type
    if device == "meta":
        known = [mode.dtype for mode in META_MODES if mode.dtype and not mode.is_suspended]
        return known[-1] if known else x.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Let everything compute in the dtype that it has."""
    if device == "meta":
        return _meta(suspended=True)
    return torch.autocast(device, enabled=False)


def with_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Mixed precision for float32 weights beside an `x` that computes in half by itself."""
    device = x.device.type
    if x.dtype not in _HALVES:
        return contextlib.nullcontext()
    if device == "meta":
        return _meta(suspended=False)
    if torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=x.dtype)


@contextlib.contextmanager
def _meta(*, suspended: bool) -> Iterator[None]:
    before = [mode.is_suspended for mode in META_MODES]
    for mode in META_MODES:
        mode.is_suspended = suspended
    try:
        yield
    finally:
        for mode, was in zip(META_MODES, before, strict=True):
            mode.is_suspended = was
