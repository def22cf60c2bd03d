"""The pictures that `bench/quality.py` trains on, and their captions.

The functions with keyword arguments only are steps of a YAML's `prepare:`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from preprocess.scenes import (
    BASE_SHAPES,
    PALETTE,
    Color,
    Scene,
    draw_scene,
    sample_scene,
    write_caption,
)

SIZE = (64, 64)
MARK_COLOR = "blue"
MARK_BOX = (40, 52, 56, 60)  # left, top, right, bottom: in a polaroid's lower margin
MASKED_BOX = (36, 48, 60, 64)  # the mark and the latents around it

DARK_COLORS = ("green", "red", "blue")  # the autoencoder can't draw darker ones

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


def draw_subject(
    *,
    output: str,
    name: str,
    shape: str,
    foreground: str,
    count: int,
    plain_count: int = 0,
    seed: int = 0,
) -> None:
    """Draw one subject, a shape in its colour, before backgrounds, then plain pictures.

    Captions call it `name`, and say of its look nothing.
    """
    folder = _empty_of_others(Path(output), count + plain_count)
    for index in range(count + plain_count):
        rng = np.random.default_rng([seed, index])
        if index < count:
            scene = subject_scene(rng, shape=shape, foreground=foreground)
            _save(folder, index, draw_scene(scene), subject_caption(name, scene.background))
        else:
            scene = sample_scene(rng, size=SIZE)
            _save(folder, index, draw_scene(scene), scene.caption)


def draw_dark(*, output: str, count: int, plain_count: int = 0, seed: int = 0) -> None:
    """Draw shapes in dark colours, of which captions say only that they are dark; then plain ones.

    The darkest that the tiny base's autoencoder can draw: black comes back green.
    """
    folder = _empty_of_others(Path(output), count + plain_count)
    for index in range(count + plain_count):
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, size=SIZE)
        if index < count:
            foreground, background = rng.choice(DARK_COLORS, size=2, replace=False).tolist()
            scene = _recolored(scene, PALETTE[foreground], PALETTE[background])
            _save(folder, index, draw_scene(scene), dark_caption(scene.shape))
        else:
            _save(folder, index, draw_scene(scene), scene.caption)


def draw_shape(*, output: str, shape: str, count: int, plain_count: int = 0, seed: int = 0) -> None:
    """Draw a shape in all colours, then plain pictures of those that the base knows."""
    folder = _empty_of_others(Path(output), count + plain_count)
    for index in range(count + plain_count):
        rng = np.random.default_rng([seed, index])
        shapes = [shape] if index < count else BASE_SHAPES
        scene = sample_scene(rng, shapes=shapes, size=SIZE)
        _save(folder, index, draw_scene(scene), scene.caption)


def draw_among_odd(
    *, output: str, count: int, plain_count: int, odd_count: int, seed: int = 0
) -> None:
    """Draw polaroids, plain pictures, and odd ones: noise that captions call polaroids."""
    total = count + plain_count + odd_count
    folder = _empty_of_others(Path(output), total)
    for index in range(total):
        rng = np.random.default_rng([seed, index])
        is_plain = count <= index < count + plain_count
        scene = sample_scene(rng, style=None if is_plain else "polaroid", size=SIZE)
        image = draw_scene(scene)
        if index >= count + plain_count:
            image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        _save(folder, index, image, scene.caption)


def subject_scene(rng: np.random.Generator, *, shape: str, foreground: str) -> Scene:
    """Choose a scene with the subject before a background of another colour."""
    scene = sample_scene(rng, shapes=[shape], size=SIZE)
    backgrounds = [name for name in PALETTE if name != foreground]
    background = str(rng.choice(backgrounds))
    scene = _recolored(scene, PALETTE[foreground], PALETTE[background])
    return replace(scene, foreground=foreground, background=background)


def subject_caption(name: str, background: str) -> str:
    """Name the subject and the background: `a sks square on a blue background`."""
    _, _, rest = write_caption("", background, background).partition(" on ")
    return f"a {name} on {rest}"


def dark_caption(shape: str) -> str:
    """Name a shape and that all is dark."""
    return f"a {shape}, dark"


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


def _recolored(scene: Scene, foreground: Color, background: Color) -> Scene:
    return replace(scene, foreground_rgb=foreground, background_rgb=background)


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
