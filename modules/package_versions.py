"""Versions of what a run is made by."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

OURSELVES = "sd-trainer"
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
_ROOT = Path(__file__).resolve().parent.parent


def package_versions(modules: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python, our own commit, and packages by name.

    `modules` are dotted paths whose package counts too, if it is one that is installed. What can't
    be told is left out.
    """
    found = {"python": platform.python_version()}
    if commit := own_commit():
        found[OURSELVES] = commit
    for name in dict.fromkeys((*_PACKAGES, *(path.partition(".")[0] for path in modules))):
        if name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return found


def own_commit() -> str | None:
    """Return the commit that is checked out, with `-dirty` if files differ from it.

    None where this is no git repository of its own, or there is no git.
    """
    try:
        found = _git("rev-parse", "--show-toplevel", "HEAD").split()
        if len(found) != 2 or Path(found[0]).resolve() != _ROOT:
            return None
        return found[1] + ("-dirty" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(_ROOT), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()
