"""Durations: the person's unit outside, optimizer steps inside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Every:
    """Something that is due every so many steps or epochs; with neither, never."""

    steps: int | None = None
    epochs: int | None = None

    def is_due(self, step: int, *, steps_per_epoch: int) -> bool:
        """Whether it is due after optimizer step `step`, counted from 1."""
        if step == 0:
            return False
        if self.steps is not None:
            return step % self.steps == 0
        if self.epochs is not None:
            return step % (self.epochs * steps_per_epoch) == 0
        return False

    def count(self, *, after: int, to: int, steps_per_epoch: int) -> int:
        """How often it is due behind step `after`, up to step `to`."""
        length = self.steps or (self.epochs or 0) * steps_per_epoch
        return to // length - after // length if length else 0


def total_steps(
    *, max_train_steps: int | None, max_train_epochs: int | None, steps_per_epoch: int
) -> int:
    """Optimizer steps of a run whose length is given in steps or in epochs."""
    if max_train_steps is not None:
        return max_train_steps
    assert max_train_epochs is not None
    return max_train_epochs * steps_per_epoch


def warmup_steps(*, steps: int | None, ratio: float | None, total: int) -> int:
    """Warm-up in optimizer steps, given as such or as a fraction of the run."""
    if steps is not None:
        return steps
    return round(ratio * total) if ratio is not None else 0
