"""Runs that are stopped by a signal in a step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from modules.config import load
from modules.errors import Interrupted
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


def assemble(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def stop_after(trainer: Trainer, step: int, *, number: int = signal.SIGTERM) -> None:
    """Send a signal in a step."""
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == step:
            signal.raise_signal(number)
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]


def interrupted(path: Path, step: int, *overrides: str) -> Trainer:
    """A run of which the state after `step` is kept."""
    trainer = assemble(path, *overrides)
    stop_after(trainer, step)
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer
