"""Metrics of steps, kept on the device and written as means every so many steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from modules.bottlenecks import Bottlenecks, measure_memory
from modules.errors import survived
from modules.metrics import Metrics
from modules.optimizer import ParameterGroup
from modules.step_clock import StepClock

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.loading import Source

Measured = Mapping[str, Tensor | int]
"""Of one step: tensors that stay on the device, and "images"."""


class StepLog:
    """Means since the last line go to metrics.jsonl and the trackers: one device sync a line."""

    def __init__(
        self,
        metrics: Metrics,
        accelerator: Accelerator,
        groups: Sequence[ParameterGroup],
        *,
        every: int,
        source: Source | None = None,
    ):
        self._metrics = metrics
        self._accelerator = accelerator
        self._groups = groups
        self._every = every
        self._kept: list[Measured] = []
        self.clock = StepClock(accelerator.device)
        self._bottlenecks = Bottlenecks(getattr(source and source.loader, "num_workers", 0))

    def add(
        self, measured: Measured, *, step: int, epoch: int, rates: Sequence[float], last: bool
    ) -> float | None:
        """Keep a step's metrics; where a line is due write it and return its loss."""
        self._kept.append(measured)
        if not (last or step == 1 or step % self._every == 0):
            return None
        record = {**self._means(), **self._speed(step)}
        if self._accelerator.is_main_process:
            named = zip(self._groups, rates, strict=True)
            record |= {f"learning_rate/{group.name}": rate for group, rate in named}
            self.write(record, step=step, epoch=epoch)
        self._kept.clear()
        return record["loss"]

    def write(self, record: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Add a line to metrics.jsonl and to the trackers; none that fails ends the run."""
        with survived("metrics.jsonl"):
            self._metrics.write({"step": step, "epoch": epoch, **record})
        for tracker in self._accelerator.trackers:
            with survived(f"loggers.{tracker.name}"):
                tracker.log(dict(record), step=step)

    @contextlib.contextmanager
    def shown(self, done: int, total: int) -> Iterator[tqdm]:
        """Show a bar of steps, in the process that writes; end with the loss curve's picture."""
        shows = self._accelerator.is_main_process
        bar = tqdm(total=total, initial=done, desc="training", disable=not shows)
        try:
            yield bar
        finally:
            bar.close()
            if shows:
                with survived("loss.png"):
                    self._metrics.plot()
            with survived("loggers"):
                self._accelerator.end_training()

    def pending(self) -> list[dict[str, float]]:
        """The metrics of steps that are in no line yet; waits for the device."""
        return [{key: float(value) for key, value in one.items()} for one in self._kept]

    def restore(self, pending: Sequence[Mapping[str, float]], *, step: int) -> None:
        """Go on after a step with what `pending` gave then; later lines are taken back."""
        self._metrics.cut(step)
        self._kept = [
            {key: int(v) if key == "images" else torch.tensor(v) for key, v in one.items()}
            for one in pending
        ]

    def _means(self) -> dict[str, float]:
        device = self._accelerator.device
        means = {
            key: _mean([torch.as_tensor(one[key], device=device) for one in self._kept])
            for key in self._kept[-1]
            if key != "images"
        }
        means["loss"] = self._accelerator.reduce(means["loss"], "mean")
        return {key: value.item() for key, value in means.items()}

    def _speed(self, step: int) -> dict[str, float]:
        times, memory = self.clock.take(), measure_memory(self._accelerator.device)
        self._bottlenecks.look(times, memory, step=step)
        # Steps before a resumed state was written are kept, but were not timed.
        images = sum(int(one["images"]) for one in self._kept[-times.steps :])
        return {**times.per_step(), "images_per_second": images / times.seconds, **memory}


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of what is finite, NaN if nothing is."""
    stacked = torch.stack(list(values))
    return stacked.where(torch.isfinite(stacked), torch.nan).nanmean()
