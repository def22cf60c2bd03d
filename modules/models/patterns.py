"""Patterns that name parts of a model by module path: `unet`, `unet.up_blocks`, `unet.*.attn2`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern names a module path, one above it, or by `*` any of these."""
    if "*" not in pattern:
        return f"{path}.".startswith(f"{pattern}.")
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def no_match(pattern: str, paths: Iterable[str]) -> str:
    """The message for a pattern that matches no module."""
    shown = nearby(pattern, paths) or "nothing"
    return f"the pattern {pattern!r} matches no module; there: {shown}"


def nearby(pattern: str, paths: Iterable[str]) -> str:
    """What there is beside what a pattern names, or if that is nowhere, at its depth."""
    parent = pattern.rpartition(".")[0]
    depth = len(pattern.split("."))
    every = list(paths)
    near = [path for path in every if not parent or matches(path, parent)]
    known = sorted({".".join(path.split(".")[:depth]) for path in near or every})
    return ", ".join(known[:12])
