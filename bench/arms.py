"""Sides of a benchmark: processes that make steps when asked, one at a time, in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARMS = Path(__file__).with_name("training_arms.py")


class Arm:
    """A process of `training_arms.py` by its settings; it has made its first step then."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ARMS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ARMS.parent.parent,
        )
        self.first_step = self._ask(json.dumps(settings))["first_step"]
        self.operations = self._read()["operations"] if settings["counts_operations"] else 0.0
        self.clock = "wall" if settings["is_on_gpu"] else "cpu"

    def steps(self, count: int) -> dict[str, float]:
        """Make some steps; return their `cpu` and `wall` seconds, and the peak `MiB` by now."""
        return self._ask(str(count))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for answer in self._process.stdout:
            if answer.startswith("{"):
                return json.loads(answer)  # type: ignore[no-any-return]
        raise RuntimeError(f"{ARMS.name} ended without an answer")


@dataclass(frozen=True)
class Rounds:
    """What sides took in rounds of so many steps."""

    arms: Mapping[str, Arm]
    found: Mapping[str, list[dict[str, float]]]
    steps: int

    def seconds(self, side: str, clock: str = "") -> list[float]:
        """Seconds of a step, round by round; by default of the processor, on a GPU of the clock."""
        return [each[clock or self.arms[side].clock] / self.steps for each in self.found[side]]

    def middle(self, side: str, clock: str = "") -> float:
        """Their median."""
        return statistics.median(self.seconds(side, clock))

    def memory(self, side: str) -> float:
        """Peak memory in MiB."""
        return self.found[side][-1]["MiB"]


def measure(arms: Mapping[str, Arm], *, rounds: int, steps: int) -> Rounds:
    """Alternate rounds of all sides, and end them."""
    for arm in arms.values():
        arm.steps(steps)  # the first ones allocate
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            found[name].append(arms[name].steps(steps))
    for arm in arms.values():
        arm.close()
    return Rounds(arms, found, steps)
