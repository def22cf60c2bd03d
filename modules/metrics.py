"""Metrics of a run: one JSON line each, and the loss curve as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.files import write_atomically


class Metrics:
    """Appends to `metrics.jsonl` and draws `loss.png` beside it."""

    def __init__(self, directory: Path):
        self._path = directory / "metrics.jsonl"
        self._picture = directory / "loss.png"

    def write(self, record: Mapping[str, float | int]) -> None:
        """Add one record; a number that is not finite becomes null, which JSON has."""
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def read(self) -> list[dict[str, float | None]]:
        """All records so far; a last line that a kill has torn is none."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        if lines and not _is_whole(lines[-1]):
            lines.pop()
        return [json.loads(line) for line in lines]

    def cut(self, step: int) -> None:
        """Take back what was written after a step, from which a run goes on."""
        if self._path.exists():
            kept = [json.dumps(record) for record in self.read() if (record["step"] or 0) <= step]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def plot(self) -> Path | None:
        """Draw the loss over the steps, and that of held-out images; None without two points."""
        records = self.read()
        points = _points(records, "loss")
        if len(points) < 2:
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        steps, losses = zip(*points, strict=True)
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="mean since the last point")
        axes.plot(steps, smoothed(losses), color="#08519c", linewidth=2, label="smoothed")
        if held_out := _points(records, "validation/loss"):
            where, values = zip(*held_out, strict=True)
            axes.plot(where, values, color="#d95f0e", marker="o", markersize=4, label="validation")
            trained = [(value, step) for step, value in held_out if step] or [(values[0], where[0])]
            value, step = min(trained)
            lowest = f"lowest: {value:.4f} at step {step:g}"
            axes.plot([step], [value], "*", color="#d95f0e", markersize=14, label=lowest)
        axes.set(xlabel="optimizer step", ylabel="loss", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        write_atomically(self._picture, FigureCanvasAgg(figure).print_png)
        return self._picture


def _points(records: Sequence[Mapping[str, float | None]], key: str) -> list[tuple[float, float]]:
    """Steps and values of a key."""
    pairs = [(record["step"], record.get(key)) for record in records]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def smoothed(values: tuple[float, ...], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start."""
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result
