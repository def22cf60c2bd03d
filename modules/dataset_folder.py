"""Where a dataset's files are; importing this is quick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modules.files import files_by_name
from modules.images import IMAGE_SUFFIXES

RESULTS = (
    *("images", "latents", "latents_flipped", "latents_packed", "latents_flipped_packed"),
    *("captions", "control", "mask", "pfg", "text"),
)
"""Folders of a dataset, where no source images are looked for."""

LATENTS = ("latents", "latents_flipped")
"""Folders of cached latents."""


def flipped_folder(latents: Path) -> Path:
    """Where the latents of mirrored images are, beside those of the images as they are."""
    return latents.with_name(f"{latents.name}_flipped")


def find_dataset_images(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find a prepared dataset's images by name; older ones lie beside buckets.json."""
    folder = directory / "images"
    found = {n: folder / (n + end) for n, end in files_by_name(folder, IMAGE_SUFFIXES).items()}
    if all(name in found for name in names):
        return found
    results = [directory / result for result in RESULTS]
    older = files_by_name(directory, IMAGE_SUFFIXES, exclude=results)
    return {name: directory / (name + ending) for name, ending in older.items()} | found
