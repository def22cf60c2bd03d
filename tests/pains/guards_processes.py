"""What prevents pains of a run's processes and ends, beside `pains.guards_runs`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pains.guards import Guard


def nothing(*_args: Any, **_options: Any) -> None:
    """Instead of a check or a wait."""


def half_vae(model: Any, _networks: Any, *, mixed_precision: str, **_options: Any) -> None:
    """Take the compute dtype for the VAE too."""
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mixed_precision]
    for module in (*model.components().values(), model.vae):
        module.to(dtype)


def names_of(dataset: Any) -> list[str]:
    """Take an image's name for its content."""
    return [dataset[number].name for number in range(len(dataset))]


def patient(self: Any, number: int, _frame: Any) -> None:
    """Let a second signal wait for the step as the first does."""
    self.signal = number


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """Write a file under its own name."""
    yield path


def counted_by_process(section: Any, optimizer: Any, *, total: int) -> Any:
    """Let the learning rate have the steps of all processes together as its horizon."""
    from modules.parts import build_schedule

    return build_schedule(section, optimizer, total=total * int(os.environ.get("WORLD_SIZE", "1")))


def _guard(row: int, tests: str, only: str, target: str, replacement: Any) -> Guard:
    name = f"test_{row:02d}_{tests}.py"
    return Guard(row=row, target=target, replacement=replacement, tests=name, only=only)


_PROCESSES = (25, "several_processes")

GUARDS = [
    _guard(1, "resume", "absolute", "modules.assembly:go_on", nothing),
    _guard(4, "black_samples", "never", "modules.engine:prepare_modules", half_vae),
    _guard(19, "held_out", "", "modules.held_out:content_hashes", names_of),
    _guard(20, "pause_and_stop", "second", "modules.requests:Requests._note", patient),
    _guard(20, "pause_and_stop", "write_that_fails", "modules.verified_files:replacing", in_place),
    _guard(*_PROCESSES, "whole_batches", "modules.assembly:build_schedule", counted_by_process),
    _guard(*_PROCESSES, "in_vain", "modules.meeting:meet", nothing),
]
