"""The side inputs that `bench/quality.py` trains on, made from pixels alone.

The functions with keyword arguments only are steps of a YAML's `prepare:`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from bench.quality_pictures import SIZE
from bench.shape_classifier import separate
from modules.files import files_by_name

FEATURE_GRID = 8
FEATURE_COUNT = 4 * FEATURE_GRID**2


def write_features(*, directory: str) -> None:
    """Write pfg/<name>.npz, the features of each of a dataset's images."""
    source, target = Path(directory) / "images", Path(directory) / "pfg"
    target.mkdir(exist_ok=True)
    for name in files_by_name(source, (".png",)):
        with Image.open(source / f"{name}.png") as image:
            np.savez(target / f"{name}.npz", controll=image_features(image))


def write_guides(*, directory: str) -> None:
    """Write control/<name>.png, the outline of what each of a dataset's images shows."""
    source, target = Path(directory) / "images", Path(directory) / "control"
    target.mkdir(exist_ok=True)
    for name in files_by_name(source, (".png",)):
        with Image.open(source / f"{name}.png") as image:
            outline(image).save(target / f"{name}.png")


def image_features(image: Image.Image) -> np.ndarray:
    """Return a picture's colours and where its foreground is, both on a coarse grid.

    (FEATURE_COUNT,), -1 to 1: red, green, blue and the foreground's part for one cell after
    another. Of colours alone, in which the shape is multiplied with them, PFG's one linear layer
    can't tell a shape; a tagger's features hold both side by side too.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    _, _, coverage = separate(pixels)
    channels = np.dstack([pixels / 255, coverage]).astype(np.float32)
    cells = channels.reshape(FEATURE_GRID, SIZE[1] // FEATURE_GRID, FEATURE_GRID, -1, 4)
    return 2 * cells.mean(axis=(1, 3)).flatten() - 1


def outline(image: Image.Image) -> Image.Image:
    """Return the edge of a picture's foreground: a white line of two pixels on black, RGB."""
    mask = Image.fromarray(foreground_mask(image).astype(np.uint8) * 255)
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(3)))
    outer = np.asarray(mask.filter(ImageFilter.MaxFilter(3)))
    return Image.fromarray(outer - inner).convert("RGB")


def foreground_mask(image: Image.Image) -> np.ndarray:
    """Return where a picture differs from its background, bool (height, width)."""
    _, _, coverage = separate(np.asarray(image.convert("RGB"), dtype=np.float32))
    return coverage > 0.5
