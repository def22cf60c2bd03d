"""The section `validation`, as those in `modules.sections`: what is held out, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modules.numbers import Count, Fraction, Natural


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    split: Fraction | None = None
    """Part of the dataset's images that is held out, chosen by their content: 0.1. Without other
    keys `validation: 0.1` says it."""
    module: str = "modules.dataset.LatentDataset"
    """Instead of `split`: dotted path of the class of a dataset of its own."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments; `path` is the directory of images that are not trained on."""
    max_images: Count | None = None
    """At most so many of the held-out images are measured; null measures all."""
    num_timesteps: Count = 4
    """Timesteps at which each image is measured: the middles of so many equal parts of those that
    are trained."""
    seed: Natural = 0
    """Start of their noise, which is the same each time."""
    every_epochs: Count | None = None
    """Epochs between two measurements; without it and `every_steps`, 1. The end is always
    measured."""
    every_steps: Count | None = None
    """Optimizer steps between two measurements."""
    keep_best: bool = True
    """Save the weights with the lowest loss as `<name>-best`."""
    patience: Count = 5
    """After so many measurements without a new lowest loss a line says that the run overfits."""
    stop_early: bool = False
    """End the run then."""
