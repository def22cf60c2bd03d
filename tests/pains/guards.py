"""Take one guard out of the code, so that the tests of the pain that it prevents have to fail.

`python -m pains.guards guards_runs` does so for each guard of a table, in a fork of its own of a
process that has imported what all of them need.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
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
        return f"{self.row:02d} {self.target}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the tests of a row say without its guard."""

    guard: str
    status: int  # pytest's: 1 is what it should be, a test has failed
    said: str


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
    """Take out what was chosen for the process that has started this one."""
    table, _, number = os.environ.get(_CHOSEN, "").partition(":")
    if table:
        take_out(tables()[table][int(number)])


def run_without_each(table: str) -> list[Outcome]:
    """Run the tests of each guard of a table without it."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, "-m", "pains.guards", table],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    return [Outcome(**json.loads(line)) for line in finished.stdout.splitlines()]


def _run_forks(table: str) -> Iterator[Outcome]:
    import pytest

    for module in ("main", "tiny", "modules.assembly", "preprocess.latent", "tools.info"):
        importlib.import_module(module)
    for number, guard in enumerate(tables()[table]):
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                os.environ[_CHOSEN] = f"{table}:{number}"
                take_out(guard)
                options = ["-q", "-n", "0", "-x", "-m", "", "-p", "no:cacheprovider", "--tb=short"]
                chosen = [str(FOLDER / guard.tests), *(["-k", guard.only] if guard.only else [])]
                status = 70  # neither of pytest's
                try:
                    status = int(pytest.main([*options, *chosen]))
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            yield Outcome(guard=str(guard), status=status, said=said.read()[-3000:])


if __name__ == "__main__":
    for outcome in _run_forks(sys.argv[1]):
        print(json.dumps(vars(outcome)), flush=True)
