"""All recipes of the quality table, in the order of its rows."""

from __future__ import annotations

from bench.recipes.adapters import ADAPTERS
from bench.recipes.base_weights import BASE_WEIGHTS
from bench.recipes.objectives import OBJECTIVES
from bench.recipes.recipe import Recipe
from bench.recipes.regimes import REGIMES
from bench.recipes.side_inputs import SIDE_INPUTS
from bench.recipes.stacks import STACKS
from bench.recipes.subjects import SUBJECTS

RECIPES: dict[str, Recipe] = {
    **ADAPTERS,
    **BASE_WEIGHTS,
    **SIDE_INPUTS,
    **OBJECTIVES,
    **REGIMES,
    **STACKS,
    **SUBJECTS,
}
