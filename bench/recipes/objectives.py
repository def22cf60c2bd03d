"""Options of the objective, with the same LoCon; beside each what it is to be compared with."""

from __future__ import annotations

from typing import Any

from bench.quality_tasks import DARK, POLAROIDS, POLAROIDS_AMONG_ODD, Task
from bench.recipes.recipe import Recipe, locon


def _objective(title: str, task: Task = POLAROIDS, **args: Any) -> Recipe:
    further = {"objective": {"args": args}} if args else {}
    return Recipe(title=title, task=task, networks={"locon": locon()}, further=further)


OBJECTIVES = {
    "min_snr": _objective("LoCon, min-SNR", min_snr_gamma=5),
    "debiased": _objective("LoCon, debiased weighting", debiased=True),
    "input_perturbation": _objective("LoCon, input perturbation", input_perturbation=0.1),
    "odd": _objective("LoCon, odd pictures among the polaroids", POLAROIDS_AMONG_ODD),
    "huber": _objective("the same, scheduled Huber loss", POLAROIDS_AMONG_ODD, loss="huber"),
    "l1": _objective("the same, L1 loss", POLAROIDS_AMONG_ODD, loss="l1"),
    "dark": _objective("LoCon, dark pictures", DARK),
    "noise_offset": _objective("the same, noise offset", DARK, noise_offset=0.1),
    "pyramid_noise": _objective("the same, pyramid noise", DARK, pyramid_noise=0.3),
    "zero_terminal_snr": _objective("the same, zero-terminal SNR", DARK, zero_terminal_snr=True),
}
