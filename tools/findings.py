"""What an examination of the machine finds, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    state: Literal["ok", "warning", "problem"]
    """A problem keeps a run from working, a warning makes it slower or takes a feature away."""
    name: str
    text: str
    mend: str = ""
    """A command line, mostly of pip."""


def guarded(name: str, probe: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a probe finds; one that fails is a warning of that name."""
    try:
        yield from probe()
    except Exception as error:
        yield Finding("warning", name, f"can't be examined: {first_line(error)}")


def first_line(error: BaseException | str) -> str:
    """What an error says first, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def show(findings: Iterable[Finding]) -> str:
    """Write findings in lines, commands below them, the count at the end."""
    findings = list(findings)
    width = max((len(one.name) for one in findings), default=0)
    lines = []
    for one in findings:
        lines.append(f"{one.state:8} {one.name:{width}}  {one.text}")
        if one.mend:
            lines.append(f"{'':8} {'':{width}}  -> {one.mend}")
    if sum(one.mend.startswith("pip install ") and "==" in one.mend for one in findings) > 1:
        first = "torch's line, then " if any("--index-url" in f.mend for f in findings) else ""
        lines.append(f"all packages at once: {first}pip install -r requirements.txt")
    counts = {state: sum(f.state == state for f in findings) for state in ("problem", "warning")}
    told = [f"{n} {state}{'s' * (n != 1)}" for state, n in counts.items() if n]
    return "\n".join([*lines, ", ".join(told) or "nothing is amiss"])
