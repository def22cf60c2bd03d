"""How the same LoCon is trained: averages, small batches, resting text encoders."""

from __future__ import annotations

from bench.recipes.recipe import Recipe, locon

_LOCON = {"locon": locon()}
_CONSTANT = {"lr_scheduler": {"name": "constant"}}

REGIMES = {
    "without_ema": Recipe(
        title="LoCon, constant high learning rate, small batch",
        learning_rate=3e-3,
        batch_size=4,
        networks=_LOCON,
        further=_CONSTANT,
    ),
    "ema": Recipe(
        title="the same, its moving average (EMA)",
        learning_rate=3e-3,
        batch_size=4,
        networks=_LOCON,
        further={**_CONSTANT, "ema": {"decay": 0.99, "save": "instead"}},
    ),
    "accumulation": Recipe(
        title="LoCon, 4 batches of 2 a step",
        batch_size=2,
        networks=_LOCON,
        further={"train": {"gradient_accumulation_steps": 4}},
    ),
    "text_stop": Recipe(
        title="LoCon, text encoder rests after half of the steps",
        networks=_LOCON,
        further={"train": {"stop_text_encoders_after": 200}},
    ),
}
