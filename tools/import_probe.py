"""Whether packages can be imported, tried in a process of their own: some don't fail but crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

_SECONDS = 180
_SCRIPT = """
import os, sys
said = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what packages print is not ours
for number, statement in enumerate(sys.argv[1:]):
    print(number, "begins", file=said, flush=True)
    try:
        exec(statement, {})
    except BaseException as error:
        told = (str(error).strip().splitlines() or [""])[0]
        print(number, "fails", f"{type(error).__name__}: {told}", file=said, flush=True)
print("end", file=said, flush=True)
"""


def import_faults(statements: Mapping[str, str]) -> dict[str, str]:
    """Return why imports fail, by the names that `statements` have; those that work are left out.

    One process imports all, as a run does; behind one that ends it or hangs, another goes on.
    """
    faults: dict[str, str] = {}
    names = list(statements)
    while names:
        lines, end = _run([statements[name] for name in names])
        begun = 0
        for line in lines:
            number, verb, *rest = line.split(" ", 2)
            begun = int(number)
            if verb == "fails":
                faults[names[begun]] = rest[0].strip(": ")
        if end is None:
            break
        faults[names[begun]] = end
        names = names[begun + 1 :]
    return faults


def _run(statements: list[str]) -> tuple[list[str], str | None]:
    """What the probe says of each statement, and how it ended if not at its end."""
    command = [sys.executable, "-c", _SCRIPT, *statements]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        output, end = done.stdout, f"ends Python with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"does not end within {_SECONDS} s"
    lines = output.decode("utf-8", errors="replace").splitlines()
    return (lines[:-1], None) if lines and lines[-1] == "end" else (lines, end)
