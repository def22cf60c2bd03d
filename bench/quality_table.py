"""Results of the quality recipes: kept as JSON, shown as one Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.quality_grades import Measure
from modules.files import write_atomically

HEADER = ("what was trained", "steps", "measure", "before", "after", "goal", "reached")


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The means of one measure."""

    measure: str
    before: float
    after: float
    goal: str
    """In words; empty if there is none."""
    is_reached: bool | None
    is_share: bool

    @classmethod
    def of(cls, measure: Measure, before: float, after: float) -> Grade:
        """Hold the means against the measure's goal."""
        goal = measure.goal
        words = describe(measure)
        return cls(
            measure=measure.title,
            before=before,
            after=after,
            goal=words,
            is_reached=goal.is_reached(before, after) if words else None,
            is_share=measure.is_share,
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one recipe came to."""

    title: str
    steps: int
    settings: str
    grades: Sequence[Grade]
    seconds: int
    """Of preparing the data and training, beside whatever else the machine does: no benchmark."""
    count: int
    """Pictures of each kind that were drawn."""
    seed: int
    date: str
    versions: str


def describe(measure: Measure) -> str:
    """Write a goal in words; empty if there is none."""
    goal = measure.goal
    parts = []
    for word, value in (
        ("before under", goal.before_under),
        ("after over", goal.after_over),
        ("after under", goal.after_under),
    ):
        if value is not None:
            parts.append(f"{word} {_number(value, measure.is_share)}")
    if goal.loses_under is not None:
        parts.append(f"loses less than {100 * goal.loses_under:.0f} points")
    return ", ".join(parts)


def read_results(path: Path) -> dict[str, Result]:
    """Read what `write_results` wrote; nothing, if the file isn't there."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Result(**{**entry, "grades": [Grade(**grade) for grade in entry["grades"]]})
        for name, entry in stored.items()
    }


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """Write results as JSON."""
    stored = {name: asdict(result) for name, result in results.items()}
    write_atomically(path, json.dumps(stored, indent=2) + "\n")


def write_table(path: Path, results: Mapping[str, Result], *, introduction: str) -> None:
    """Write the Markdown page: introduction, table, and each recipe's settings."""
    lines = ["# Quality", "", introduction, "", _row(HEADER), _row(["---"] * len(HEADER))]
    for result in results.values():
        for number, grade in enumerate(result.grades):
            first = number == 0
            lines.append(
                _row(
                    [
                        result.title if first else "",
                        str(result.steps) if first else "",
                        grade.measure,
                        _number(grade.before, grade.is_share),
                        f"**{_number(grade.after, grade.is_share)}**",
                        grade.goal or "-",
                        {True: "yes", False: "**no**", None: "-"}[grade.is_reached],
                    ]
                )
            )
    lines += ["", "## Settings", ""]
    for name, result in results.items():
        lines.append(
            f"- `{name}`, {result.title}: {result.settings}. {result.count} pictures of each kind "
            f"drawn, seed {result.seed}, {result.date}, {result.versions}."
        )
    write_atomically(path, "\n".join(lines) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.0f} %" if is_share else f"{value:.2f}"
