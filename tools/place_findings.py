"""Disks, fonts and the settings of the environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding

_TIGHT, _LITTLE = (
    1e9,
    10e9,
)  # bytes; a base model takes 2 to 7 GB, its state while tuned thrice that


def find_disks(output: Path) -> Iterator[Finding]:
    """Yield the free space of where runs write and of where the hub's models are kept."""
    yield _find_disk("output", output)
    yield _find_disk("cache", hub_cache())


def hub_cache() -> Path:
    """The folder of models from the hub, found as huggingface_hub does, without importing it."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(os.environ.get("HF_HOME") or caches / "huggingface") / "hub").expanduser()


def _find_disk(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}: {free / 1e9:.1f} GB free"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("problem", name, f"{folder}: {there} can't be written to")
    if free < _TIGHT:
        return Finding("problem", name, f"{text}, too little for a model")
    if free < _LITTLE:
        return Finding("warning", name, f"{text}, a few models' worth")
    return Finding("ok", name, text)


def find_settings() -> Iterator[Finding]:
    """Yield what the environment forbids."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            text = f"{variable} is set: nothing is downloaded, only models in the cache are found"
            yield Finding("warning", "network", text)


def find_fonts() -> Iterator[Finding]:
    """Yield whether a sheet of validation images can show Japanese prompts."""
    from PIL import ImageFont

    from modules.grids import find_font

    font = find_font("猫", 16)
    own = ImageFont.load_default(size=16)
    names = [one.getname() for one in (font, own) if isinstance(one, ImageFont.FreeTypeFont)]
    if len(set(names)) == 2:
        yield Finding("ok", "fonts", f"{names[0][0]} for Japanese prompts in sheets of images")
        return
    text = "none with Japanese: such prompts are boxes in sheets of images; install Noto Sans CJK"
    mend = "apt install fonts-noto-cjk" if shutil.which("apt") else ""
    yield Finding("warning", "fonts", text, mend)
