"""The precision that operations run in: autocast's, or in an estimate that of its stand-in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

_HALVES = (torch.float16, torch.bfloat16)


class MetaMode(Protocol):
    """Autocast as an estimate has it (`modules.meta_autocast`)."""

    dtype: torch.dtype | None
    is_suspended: bool


META_MODES: list[MetaMode] = []
"""Those that are entered, the innermost last."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product with `x` is computed in."""
    device = x.device.type
    if META_MODES:
        known = [mode.dtype for mode in META_MODES if mode.dtype and not mode.is_suspended]
        return known[-1] if known else x.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Let everything compute in the dtype that it has."""
    if META_MODES:
        return _meta(suspended=True)
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def with_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Mixed precision for float32 weights beside an `x` that computes in half by itself."""
    device = x.device.type
    if x.dtype not in _HALVES:
        return contextlib.nullcontext()
    if META_MODES:
        return _meta(suspended=False)
    if not torch.amp.is_autocast_available(device) or torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=x.dtype)


def checkpoint(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Checkpointing as torch's; what is computed again is so in the precision of the first time.

    torch itself sees to its own autocast, not to that of an estimate.
    """
    if META_MODES:
        suspended = META_MODES[-1].is_suspended
        options["context_fn"] = lambda: (contextlib.nullcontext(), _meta(suspended=suspended))
    return torch_checkpoint(function, *args, use_reentrant=False, **options)


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
