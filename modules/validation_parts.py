"""What is held out and how it is measured, as the config says."""

from __future__ import annotations

from functools import partial
from typing import Any

from modules.errors import explained
from modules.held_out import HeldOut, all_of, hold_out, nothing_held_out
from modules.run_kinds import kind_of
from modules.run_parts import RunParts
from modules.schedule import Every
from modules.sections import Config
from modules.validation import NoValidation, Validation


def find_held_out(config: Config, parts: RunParts) -> HeldOut:
    """The images of a run that are not trained on.

    Raises:
        ConfigError: there would be none, or none left to train on.
    """
    section = config.validation
    if section is None:
        return nothing_held_out(parts.dataset)
    if section.split is None:
        find = partial(all_of, parts.validation, trained=parts.dataset)
    else:
        find = partial(hold_out, parts.dataset, section.split)
    return explained("validation", partial(find, most=section.max_images))


def build_validation(config: Config, held_out: HeldOut, objective: Any, *, writes: bool) -> Any:
    """What measures held-out images, or nothing."""
    section = config.validation
    if section is None:
        return NoValidation()
    losses = kind_of(config).losses(
        objective,
        num_timesteps=section.num_timesteps,
        seed=section.seed,
        most=config.train.batch_size,
    )
    epochs = section.every_epochs or (None if section.every_steps else 1)
    return Validation(
        held_out,
        losses,
        every=Every(steps=section.every_steps, epochs=epochs),
        keeps_best=section.keep_best,
        patience=section.patience,
        stops_early=section.stop_early,
        writes=writes,
    )
