"""The pictures and side inputs that `bench/quality.py` trains on, made from pixels alone.

The functions with keyword arguments only are steps of a YAML's `prepare:`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bench.shape_classifier import separate
from modules.files import files_by_name
from preprocess.scenes import PALETTE, Scene, draw_scene, sample_scene

SIZE = (64, 64)
FEATURE_GRID = 8
FEATURE_COUNT = 4 * FEATURE_GRID**2
MARK_COLOR = "blue"
MARK_BOX = (40, 52, 56, 60)  # left, top, right, bottom: in a polaroid's lower margin
MASKED_BOX = (36, 48, 60, 64)  # the mark and the latents around it

_MIN_MARGIN = 4.0  # pixels between a scattered shape and the border
_MIN_RADIUS, _MAX_RADIUS = 0.17, 0.36  # of the side


def draw_scattered(*, output: str, count: int, seed: int = 0) -> None:
    """Draw plain pictures whose shapes lie anywhere and are small or large."""
    folder = _empty_of_others(Path(output), count)
    for index in range(count):
        scene = scattered_scene(np.random.default_rng([seed, index]))
        _save(folder, index, draw_scene(scene), scene.caption)


def draw_marked(
    *, output: str, masks: str, count: int, plain_count: int = 0, seed: int = 0
) -> None:
    """Draw polaroids with a coloured mark on their lower margin, then plain pictures.

    `masks` gets a picture for each that is black where the mark is, white elsewhere.
    """
    folder = _empty_of_others(Path(output), count + plain_count)
    mask_folder = _empty_of_others(Path(masks), count + plain_count)
    for index in range(count + plain_count):
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, style="polaroid" if index < count else None, size=SIZE)
        image, mask = draw_scene(scene), Image.new("L", SIZE, 255)
        if scene.style:
            image = add_mark(image)
            mask.paste(0, MASKED_BOX)
        _save(folder, index, image, scene.caption)
        mask.save(mask_folder / f"{index:04d}.png")


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


def scattered_scene(rng: np.random.Generator) -> Scene:
    """Choose a plain scene whose shape lies anywhere, of a quarter to more than twice the area."""
    scene = sample_scene(rng, size=SIZE)
    side = SIZE[0]
    radius = rng.uniform(_MIN_RADIUS, _MAX_RADIUS) * side
    x, y = rng.uniform(radius + _MIN_MARGIN, side - radius - _MIN_MARGIN, size=2)
    return replace(scene, center=(float(x), float(y)), radius=float(radius))


def add_mark(image: Image.Image) -> Image.Image:
    """Return the picture with the mark on it."""
    marked = image.copy()
    left, top, right, bottom = MARK_BOX
    ImageDraw.Draw(marked).rectangle((left, top, right - 1, bottom - 1), fill=PALETTE[MARK_COLOR])
    return marked


def _save(folder: Path, index: int, image: Image.Image, caption: str) -> None:
    image.save(folder / f"{index:04d}.png")
    (folder / f"{index:04d}.txt").write_text(caption + "\n", encoding="utf-8")


def _empty_of_others(folder: Path, count: int) -> Path:
    """Make the folder; raise if it holds pictures that `count` new ones would not replace."""
    folder.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in sorted(folder.glob("*.png"))][count:]
    if others:
        raise ValueError(f"{folder}: holds other pictures ({others[0]}); delete it or name another")
    return folder
