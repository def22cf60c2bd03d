"""Refusing to train a model for what it does not predict."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from modules.drawing import evaluation
from modules.errors import explained
from modules.objectives import OBJECTIVES
from modules.prediction_probe import measure, sample_batches
from modules.randomness import drawn_apart

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.run_parts import RunParts

logger = logging.getLogger(__name__)

_LEAST_RATIO = 1.5  # of the loss that would be trained to the other
_MOST = 0.75  # of the other, to that of a model which predicts nothing
_IMAGES = 8
_FEW = 2  # images after which a model that is far from being refused passes


def check_prediction(
    parts: RunParts, accelerator: Accelerator, *, batch_size: int, is_told: bool
) -> None:
    """Measure a model before its first step, as noise and as velocity, on images of the dataset.

    A model that does neither well, as a random one, passes. Two images are measured, and eight
    where two don't make it clear. `is_told`: the config names the objective, so that it is on
    purpose, and a contradiction is a warning only.

    Raises:
        ValueError: it was trained for the other type; gives both losses, and what to write.
    """
    trained, model = getattr(parts.objective, "prediction_type", None), parts.model
    if trained not in OBJECTIVES:
        return
    losses, nothing, images = _measure(parts, accelerator, trained, most=min(batch_size, _FEW))
    (other,) = losses.keys() - {trained}
    if losses[trained] <= _LEAST_RATIO * losses[other] or losses[other] >= _MOST * nothing[other]:
        return
    found = (
        f"{model.path}: predicts {other}, not {trained}: on {images} of the "
        f"images its loss is {losses[other]:.3f} as {other} and {losses[trained]:.3f} as "
        f"{trained}"
    )
    if is_told:
        logger.warning("%s; trained is %s, as objective.module says", found, trained)
        return
    objective = OBJECTIVES[trained]
    raise ValueError(
        f"{found}, which {model.prediction_source} says; {_remedy(model, other)}. To turn "
        f"it into the other on purpose, write objective.module: {objective.__module__}."
        f"{objective.__name__}"
    )


def _measure(
    parts: RunParts, accelerator: Accelerator, trained: str, *, most: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """By type, the mean losses and those of predicting nothing, by the path that training takes.

    The last is of how many images.
    """
    model, networks = parts.model, list(parts.networks.values())
    sums, images = torch.zeros(2, len(OBJECTIVES), dtype=torch.float64), 0
    with drawn_apart("prediction"), evaluation(model, networks), accelerator.autocast():
        read = partial(sample_batches, parts.dataset, count=_IMAGES, most=most)
        for number, batch in enumerate(explained("dataset", read)):
            moved = batch.to(accelerator.device)
            found = measure(model, moved, seed=number, networks=networks)
            count = len(batch.captions)
            sums += count * torch.tensor([found[name] for name in OBJECTIVES]).T
            images += count
            losses, nothing = (
                dict(zip(OBJECTIVES, row, strict=True)) for row in (sums / images).tolist()
            )
            if images >= _FEW and _is_far_from_refusal(losses, nothing, trained):
                break
    return losses, nothing, images


def _is_far_from_refusal(losses: dict[str, float], nothing: dict[str, float], trained: str) -> bool:
    (other,) = losses.keys() - {trained}
    return losses[trained] <= losses[other] or losses[other] >= nothing[other]


def _remedy(model: Any, other: str) -> str:
    """What to write for a model that predicts the other type than it says."""
    objective = OBJECTIVES[other]
    named = f"objective.module: {objective.__module__}.{objective.__name__}"
    if model.prediction_source == "its scheduler":
        file = "scheduler/scheduler_config.json"
        return f"set prediction_type to {other} in its {file}, or write {named}"
    if model.prediction_source.startswith("the file's marker"):
        return f"write {named}"
    return f"write model.prediction_type: {other}"
