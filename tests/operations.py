"""Counts of what torch computes, instead of seconds."""

from __future__ import annotations

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts what is computed, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.launches = 0  # without views of what is there, and memory without a value

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns = function._schema.returns
        is_view = any(r.alias_info and not r.alias_info.is_write for r in returns)
        self.launches += not is_view and "empty" not in function.__name__
        self.counts[function.__name__.split(".")[0]] += 1
        return function(*args, **(kwargs or {}))
