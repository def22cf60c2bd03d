"""What a process has taken."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> float:
    """Return the most memory that this process had, in MiB.

    What `getrusage` says on Linux begins with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
