"""Several networks of one kind: on each other, or trained together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.quality_tasks import HEARTS
from bench.recipes.recipe import Recipe, locon

_FIRST = Recipe(title="LoCon", networks={"locon": locon()})


def _second(title: str, **frozen: Any) -> Recipe:
    first = {**locon(), "train": False, "resume": "{first}", **frozen}
    networks = {"first": first, "second": locon()}
    return Recipe(title=title, task=HEARTS, networks=networks, first=_FIRST)


STACKS = {
    "frozen": _second("LoCon on one of polaroids, kept beside frozen"),
    "merged": _second("LoCon on one of polaroids, merged first", merge=True),
    "two_loras": replace(
        _FIRST,
        title="two LoCons at once, each of half the rank",
        networks={name: locon(rank=8, conv_rank=8) for name in ("one", "other")},
    ),
}
