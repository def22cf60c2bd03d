"""Metrics of steps, kept on the device and written as means every so many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modules.metrics import Metrics
from modules.optimizer import ParameterGroup

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    ):
        self._metrics = metrics
        self._accelerator = accelerator
        self._groups = groups
        self._every = every
        self._kept: list[Measured] = []
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave out the time until now."""
        self._since = time.perf_counter()

    def add(
        self, measured: Measured, *, step: int, epoch: int, rates: Sequence[float], last: bool
    ) -> float | None:
        """Keep a step's metrics; where a line is due write it and return its loss."""
        self._kept.append(measured)
        if not (last or step == 1 or step % self._every == 0):
            return None
        record = self._means()
        if self._accelerator.is_main_process:
            named = zip(self._groups, rates, strict=True)
            record |= {f"learning_rate/{group.name}": rate for group, rate in named}
            record |= self._speed()
            self.write(record, step=step, epoch=epoch)
        self._kept.clear()
        return record["loss"]

    def write(self, record: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Add a line to metrics.jsonl and to the trackers."""
        self._metrics.write({"step": step, "epoch": epoch, **record})
        self._accelerator.log(dict(record), step=step)

    def plot(self) -> None:
        """Draw the loss curve, in the process that writes."""
        if self._accelerator.is_main_process:
            self._metrics.plot()

    def _means(self) -> dict[str, float]:
        means = {
            key: torch.stack([one[key] for one in self._kept]).mean()  # type: ignore[misc]
            for key in self._kept[-1]
            if key != "images"
        }
        means["loss"] = self._accelerator.reduce(means["loss"], "mean")
        return {key: value.item() for key, value in means.items()}

    def _speed(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        images = sum(int(one["images"]) for one in self._kept)
        return {
            "seconds_per_step": seconds / len(self._kept),
            "images_per_second": images / seconds,
        }


def is_lost(loss: float | None, accelerator: Accelerator) -> bool:
    """Whether a loss is not finite, and no gradient scaler is there to skip such a step."""
    return loss is not None and not math.isfinite(loss) and accelerator.scaler is None
