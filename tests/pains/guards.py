"""Take one guard out of the code, so that the tests of the pain that it prevents have to fail."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
_CHOSEN = "PAINS_GUARD"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What prevents a pain, and what stands in its place where it is taken out.

    `target` is where the code looks it up: "modules.trainer:check_steps" for a function that the
    trainer imports by name, "modules.step_guard:StepGuard.step" for a method.
    """

    row: int  # of the table of pains
    target: str
    replacement: Any  # a function or value that prevents nothing
    tests: str  # a file of this folder
    only: str = ""  # which of its tests, as pytest's -k

    def __str__(self) -> str:
        return f"{self.row:02d}-{self.target}"


def tables() -> Mapping[str, list[Guard]]:
    """All tables of guards, by the names of their modules."""
    names = sorted(path.stem for path in FOLDER.glob("guards_*.py"))
    return {name: importlib.import_module(f"pains.{name}").GUARDS for name in names}


def take_out(guard: Guard) -> None:
    """Put the replacement where the guard is looked up.

    Raises:
        AttributeError: there is no such guard.
    """
    module, _, path = guard.target.partition(":")
    *outer, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for each in outer:
        holder = getattr(holder, each)
    getattr(holder, name)
    setattr(holder, name, guard.replacement)


def take_out_the_chosen() -> None:
    """Take out what `run_without` has chosen for this process and those that it starts."""
    table, _, number = os.environ.get(_CHOSEN, "").partition(":")
    if table:
        take_out(tables()[table][int(number)])


def pytest_collection() -> None:
    """As a plugin of pytest: take the guard out before the tests import the code."""
    take_out_the_chosen()


def run_without(table: str, number: int) -> subprocess.CompletedProcess[str]:
    """Run the tests of a guard's row in a process without it."""
    guard = tables()[table][number]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    command = ["-m", "pytest", "-q", "-n", "0", "-x", "-m", "", "-p", "pains.guards"]
    command += ["-p", "no:cacheprovider", "--tb=short"]
    command += [str(FOLDER / guard.tests), *(["-k", guard.only] if guard.only else [])]
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            _CHOSEN: f"{table}:{number}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
