"""The page of figures, docs/benchmarks.md: each section is written by the command it names."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_LAST = "## Not yet run on CUDA"
_PACKAGES = ("torch", "diffusers", "peft", "Pillow")


def write_section(title: str, lines: Sequence[str], *, page: Path = PAGE) -> None:
    """Put lines under the heading `title` of a page, in place of what stood there.

    A section that is new stands behind the others, before what was not yet run.
    """
    heading = f"## {title}"
    sections = _sections(page.read_text(encoding="utf-8"))
    sections[heading] = "\n" + "\n".join(lines).strip("\n") + "\n\n"
    if _LAST in sections and heading != _LAST:
        sections[_LAST] = sections.pop(_LAST)
    text = "".join(f"{head}\n{body}" if head else body for head, body in sections.items())
    page.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def conditions(script: str, arguments: Sequence[str]) -> str:
    """Return the line above a table: the command, the day, and on what it was measured."""
    import torch

    command = shlex.join(["python", script, *arguments])
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    packages = ", ".join(filter(None, map(_versioned, _PACKAGES)))
    day = datetime.datetime.now(datetime.UTC).date()
    return f"`{command}`, {day}: {where}, {os.cpu_count()} cores, {packages}."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table of Markdown."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    assert all(len(line) == len(header) for line in lines)
    return ["| " + " | ".join(line) + " |" for line in lines]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, with the lowest and the highest."""
    each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"**{statistics.median(each):.2f}** ({each[0]:.2f} to {each[-1]:.2f})"


def _versioned(package: str) -> str:
    """A package with its version; "" if it is not installed, since not every table needs each."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _sections(text: str) -> dict[str, str]:
    """Split a page into what stands under each `## ` heading; "" is what is above the first."""
    found, heading = {"": ""}, ""
    for line in text.splitlines(keepends=True):
        if line.startswith("## "):
            heading = line.rstrip("\n")
            found[heading] = ""
        else:
            found[heading] += line
    return found
