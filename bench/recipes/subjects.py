"""One subject by a name: Dreambooth, textual inversion, pivotal tuning."""

from __future__ import annotations

from typing import Any

from bench.quality_tasks import DREAMBOOTH, KNOWN_SUBJECT, NEW_SUBJECT
from bench.recipes.recipe import Recipe, locon

_PRIOR = {"prior": {"args": {"path": "{prior}"}, "loss_weight": 1.0}}


def _tokens(rate: float) -> dict[str, Any]:
    return {
        "module": "networks.textual_inversion.TextualInversion",
        "args": {"tokens": {"<toy>": {"init": "square", "vectors": 2}}},
        "learning_rate": rate,
    }


SUBJECTS = {
    "dreambooth": Recipe(
        title="Dreambooth without class images",
        task=DREAMBOOTH,
        steps=200,
        batch_size=4,
        networks={"locon": locon()},
    ),
    "dreambooth_prior": Recipe(
        title="Dreambooth with prior preservation",
        task=DREAMBOOTH,
        steps=200,
        batch_size=4,
        networks={"locon": locon()},
        further=_PRIOR,
    ),
    "textual_inversion": Recipe(
        title="textual inversion of what the base can draw",
        task=KNOWN_SUBJECT,
        networks={"tokens": _tokens(1e-2)},
    ),
    "pivotal_tuning": Recipe(
        title="textual inversion with a LoCon (pivotal tuning), of what it can't",
        task=NEW_SUBJECT,
        networks={"tokens": _tokens(1e-2), "locon": locon()},
    ),
}
