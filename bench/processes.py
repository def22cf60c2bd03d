"""What a process has taken: this one, or one that is run for it.

python bench/processes.py COMMAND ...      # as a small process that measures another
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

_SHOWN = 20  # lines of a failed process's errors that are shown


@dataclass(frozen=True)
class Taken:
    """What a whole process took, with those that it waited for."""

    cpu: float
    """Seconds of the processor, of user and system together."""
    wall: float
    """Seconds of the clock, until it had ended."""
    mib: float
    """Peak of its resident memory in MiB."""


def run_whole(
    command: Sequence[str], *, variables: Mapping[str, str] | None = None, stdin: Path | None = None
) -> Taken:
    """Run a command to its end and return what it took; what it says is dropped.

    A small process starts it: its peak of memory would begin with that of the one which does.

    Args:
        variables: of the environment, beside those of this process.
        stdin: a file that it reads as its input.

    Raises:
        RuntimeError: it failed; gives the end of its errors.
    """
    with open(stdin or os.devnull, "rb") as given:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__)), *command],
            stdin=given,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(variables or {})},
        )
    if done.returncode:
        errors = "\n".join(done.stderr.splitlines()[-_SHOWN:])
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return Taken(**json.loads(done.stdout))


def peak_memory() -> float:
    """Return the most memory that this process had, in MiB.

    What `getrusage` says on Linux begins with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    import resource

    return _mebibytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _mebibytes(peak: int) -> float:
    """What `getrusage` says of memory, in MiB."""
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _measure(command: Sequence[str], errors: IO[Any]) -> tuple[int, Taken]:
    """Run a command; return its exit status and what it took."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    taken = Taken(cpu=usage.ru_utime + usage.ru_stime, wall=wall, mib=_mebibytes(usage.ru_maxrss))
    return process.returncode, taken


if __name__ == "__main__":
    exit_status, found = _measure(sys.argv[1:], sys.stderr)
    print(json.dumps(asdict(found)))
    sys.exit(exit_status and 1)
