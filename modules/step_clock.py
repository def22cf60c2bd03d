"""The time of a step by its phases, without waiting for the device in each step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

PHASES = ("data", "forward", "backward", "optimizer")
"""Of a step; what is left of its time (saves, samples, the log) is "other"."""

_Group = TypeVar("_Group")


@dataclass(frozen=True)
class Times:
    """Sums over the steps since the last reading, in seconds."""

    steps: int
    seconds: float
    phases: dict[str, float]

    def per_step(self) -> dict[str, float]:
        """Mean seconds of a step and of its phases, as they are logged."""
        if not self.phases:
            return {"seconds_per_step": self.seconds / self.steps}
        other = max(0.0, self.seconds - sum(self.phases.values()))
        means = {f"seconds/{k}": v / self.steps for k, v in {**self.phases, "other": other}.items()}
        return {"seconds_per_step": self.seconds / self.steps, **means}


class StepClock:
    """Charges the time from one mark to the next to a phase.

    On CUDA a mark is an event in the device's queue, read when a line is logged. The host's clock
    would tell when work was queued, and call data slow that is read while the device still works.
    On devices that are neither CUDA nor the CPU only whole steps are timed.
    """

    def __init__(self, device: torch.device):
        self._make_mark = _MARKS.get(device.type)
        self._laps: list[tuple[str, Any, Any]] = []  # phase, the marks around it
        self._mark: Any = None
        self._steps = 0
        self._since = time.perf_counter()

    def timed(self, groups: Iterator[_Group]) -> Iterator[_Group]:
        """Yield the groups of steps; waiting for them is "data". The clock begins with the first.

        `groups` has no end.
        """
        self._since = time.perf_counter()
        while True:
            self._mark = self._make_mark() if self._make_mark else None
            group = next(groups)
            self.lap("data")
            self._steps += 1
            yield group

    def lap(self, phase: str) -> None:
        """End a phase, which began where the last one ended."""
        if self._make_mark is None:
            return
        mark = self._make_mark()
        if self._mark is not None:
            self._laps.append((phase, self._mark, mark))
        self._mark = mark

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out the time that is spent in it, between two steps."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - begun

    def take(self) -> Times:
        """The times since the last call; waits for the device."""
        phases = dict.fromkeys(PHASES, 0.0) if self._laps else {}
        if self._laps:
            self._laps[-1][2].wait()
        for phase, begin, end in self._laps:
            phases[phase] += begin.seconds_to(end)
        now = time.perf_counter()
        times = Times(max(1, self._steps), now - self._since, phases)
        self._laps, self._steps, self._since = [], 0, now
        return times


class _HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        """Wait for nothing: it has passed."""

    def seconds_to(self, later: _HostMark) -> float:
        return later._at - self._at


class _CudaMark:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_to(self, later: _CudaMark) -> float:
        return self._event.elapsed_time(later._event) / 1000


_MARKS: dict[str, Any] = {"cpu": _HostMark, "cuda": _CudaMark}
