"""Weights of the base itself, all or some of them."""

from __future__ import annotations

from bench.quality_tasks import POLAROIDS_AMONG_PLAIN
from bench.recipes.recipe import BOTH, Recipe

BASE_WEIGHTS = {
    "full": Recipe(title="full fine-tuning", learning_rate=3e-4, trainable=BOTH),
    "up_blocks": Recipe(
        title="up_blocks only",
        task=POLAROIDS_AMONG_PLAIN,
        steps=1000,
        learning_rate=4e-4,
        trainable=["unet.up_blocks"],
    ),
}
