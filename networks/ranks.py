"""Ranks and alphas: those of a network, and of the parts of the model that get others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from modules.models.patterns import matches, no_match

Rank = int | Literal["dynamic"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What an adapter's layers are made with; null leaves it as it is for the rest."""

    rank: Rank | None = None
    alpha: float | None = None
    conv_rank: Rank | None = None
    conv_alpha: float | None = None

    def of(self, *, spatial: bool, dynamic: int) -> tuple[int, float]:
        """Rank and alpha of one layer; `dynamic` is its rank by size.

        An alpha of null or 0 means the rank, which "dynamic" does not have: then it is 1.
        """
        spatial = spatial and self.conv_rank is not None
        rank = self.conv_rank if spatial else self.rank
        alpha = (self.conv_alpha or self.alpha) if spatial else self.alpha
        if isinstance(rank, int):
            return rank, float(alpha or rank)
        return dynamic, float(alpha or 1)

    def faults(self) -> list[str]:
        """What is wrong with the ranks, by key."""
        return [
            f"{key}: {value} is not a rank; it must be at least 1"
            for key, value in (("rank", self.rank), ("conv_rank", self.conv_rank))
            if isinstance(value, int) and value < 1
        ]


def ranks_at(path: str, general: Ranks, blocks: Mapping[str, Ranks]) -> Ranks:
    """The ranks and alphas of the layer at a module path: of several patterns the longest wins."""
    for pattern in sorted(blocks, key=len):
        if matches(path, pattern):
            given = {f.name: getattr(blocks[pattern], f.name) for f in fields(Ranks)}
            general = replace(general, **{k: v for k, v in given.items() if v is not None})
    return general


def check_blocks(blocks: Mapping[str, Ranks], general: Ranks) -> None:
    """Check the ranks of blocks, as far as that can be done without a model.

    Raises:
        ValueError: a rank is none, or is of convolutions that aren't adapted.
    """
    for pattern, block in blocks.items():
        where = f"blocks.{pattern}"
        for fault in block.faults():
            raise ValueError(f"{where}.{fault}")
        for key in ("conv_rank", "conv_alpha"):
            if getattr(block, key) is not None and general.conv_rank is None:
                raise ValueError(
                    f"{where}.{key}: has no effect without conv_rank beside blocks, which says "
                    "that convolutions are adapted"
                )


def check_patterns(blocks: Mapping[str, Ranks], paths: Iterable[str]) -> None:
    """Check that every pattern is of a layer that is adapted.

    Raises:
        ValueError: a pattern matches none; names it and what there is.
    """
    paths = list(paths)
    for pattern in blocks:
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(f"blocks: {no_match(pattern, paths)}")
