"""What requirements.txt asks for on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "requirements.txt"
_LINE = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.+))?")


@dataclass(frozen=True)
class Requirement:
    """A package, at the version that it is tested with."""

    name: str
    version: str

    @property
    def pip_line(self) -> str:
        return f"pip install {self.name}=={self.version}"


def read_requirements(path: Path = FILE) -> list[Requirement]:
    """Return the requirements that apply here; of those with a marker none without `packaging`."""
    matches = [_LINE.fullmatch(x.strip()) for x in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(m[1], m[2]) for m in matches if m and (m[3] is None or _applies(m[3]))]


def installed_version(name: str) -> str | None:
    """Return the version of a package, without importing it; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def as_numbers(version: str) -> tuple[int, int, int]:
    """`2.13.0+cu130` as (2, 13, 0), to compare."""
    numbers = [int(n) for n in re.findall(r"\d+", version.partition("+")[0])]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def _applies(marker: str) -> bool:
    try:
        from packaging.markers import Marker
    except ImportError:
        return False
    return Marker(marker).evaluate()
