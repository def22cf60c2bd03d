"""Describe and draw one picture: a coloured shape on a coloured background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]

PALETTE: dict[str, Color] = {
    "red": (214, 40, 48),
    "orange": (245, 138, 31),
    "yellow": (250, 214, 62),
    "green": (46, 154, 84),
    "cyan": (72, 200, 214),
    "blue": (34, 76, 196),
    "purple": (146, 62, 172),
    "pink": (247, 150, 188),
}
BASE_SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT_SHAPES = ("star", "heart", "moon", "ring")
SHAPES = BASE_SHAPES + HELD_OUT_SHAPES
SIZES = ((64, 64), (80, 48), (48, 80))  # width, height
WHITE: Color = (250, 248, 244)
# Margins (left, top, right, bottom) in eighths of the short side, and their colour; None: the
# shape's own. Polaroid is the one that the tiny base never sees.
STYLES: dict[str, tuple[tuple[int, int, int, int], Color | None]] = {
    "polaroid": ((1, 1, 1, 2), WHITE),
    "framed": ((1, 1, 1, 1), None),
    "poster": ((0, 0, 0, 2), WHITE),
}

_SIZE_SHARES = {(64, 64): 0.6, (80, 48): 0.2, (48, 80): 0.2}
SIZES_BY_NAME = {f"{width}x{height}": (width, height) for width, height in SIZES}
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """Describe one picture completely; lengths in pixels, the origin at the upper left."""

    shape: str
    foreground: str
    background: str
    width: int
    height: int
    center: tuple[float, float]
    radius: float
    foreground_rgb: Color
    background_rgb: Color
    style: str | None = None

    @property
    def caption(self) -> str:
        return write_caption(self.shape, self.foreground, self.background, self.style)


def write_caption(shape: str, foreground: str, background: str, style: str | None = None) -> str:
    """Name a picture's content, e.g. `an orange circle on a blue background, polaroid`."""
    suffix = f", {style}" if style else ""
    return f"{_article(foreground)} {shape} on {_article(background)} background{suffix}"


def sample_scene(
    rng: np.random.Generator,
    *,
    shapes: Sequence[str] = BASE_SHAPES,
    style: str | None = None,
    size: tuple[int, int] | None = None,
) -> Scene:
    """Choose a scene at random; `size` is (width, height), chosen as well if None."""
    size = size or choose_size(rng)
    shape = shapes[int(rng.integers(len(shapes)))]
    foreground, background = rng.choice(list(PALETTE), size=2, replace=False).tolist()
    width, height = size
    short_side = min(size)
    radius = rng.uniform(0.28, 0.34) * short_side
    shift = rng.uniform(-0.05, 0.05, size=2) * short_side
    left, top, right, bottom = style_window(style, size)
    if style is not None:
        radius, shift = 0.8 * radius, 0.3 * shift
    center = ((left + right) / 2 + shift[0], (top + bottom) / 2 + shift[1])
    return Scene(
        shape=shape,
        foreground=foreground,
        background=background,
        width=width,
        height=height,
        center=(float(center[0]), float(center[1])),
        radius=float(radius),
        foreground_rgb=_jitter(rng, PALETTE[foreground]),
        background_rgb=_jitter(rng, PALETTE[background]),
        style=style,
    )


def choose_size(
    rng: np.random.Generator, sizes: Sequence[tuple[int, int]] = SIZES
) -> tuple[int, int]:
    """Choose one of the sizes at random, squares most often."""
    shares = np.array([_SIZE_SHARES[size] for size in sizes])
    return sizes[rng.choice(len(sizes), p=shares / shares.sum())]


def draw_scene(scene: Scene) -> Image.Image:
    """Draw the picture of a scene: RGB, with smooth edges."""
    size = (scene.width, scene.height)
    image = Image.new("RGB", size, scene.background_rgb)
    mask = draw_mask(scene.shape, size, scene.center, scene.radius)
    image.paste(scene.foreground_rgb, (0, 0, *size), mask)
    if scene.style is None:
        return image
    styled = Image.new("RGB", size, STYLES[scene.style][1] or scene.foreground_rgb)
    window = style_window(scene.style, size)
    styled.paste(image.crop(window), window)
    return styled


def draw_mask(
    shape: str, size: tuple[int, int], center: tuple[float, float], radius: float
) -> Image.Image:
    """Draw a shape's coverage, 0 to 255, drawn larger and scaled down for smooth edges."""
    scale = _OVERSAMPLING
    mask = Image.new("L", (size[0] * scale, size[1] * scale), 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = center[0] * scale, center[1] * scale, radius * scale

    def disc(dx: float, dy: float, part: float, fill: int) -> None:
        cx, cy, q = x + dx * r, y + dy * r, part * r
        draw.ellipse((cx - q, cy - q, cx + q, cy + q), fill=fill)

    if shape in _OUTLINES:
        draw.polygon([(x + px * r, y + py * r) for px, py in _OUTLINES[shape]], fill=255)
    elif shape in ("circle", "ring", "moon"):
        disc(0, 0, 1, 255)
    else:
        raise ValueError(f"shape: {shape!r} is unknown; use one of {', '.join(SHAPES)}")
    if shape == "ring":
        disc(0, 0, 0.55, 0)
    elif shape == "moon":
        disc(0.45, -0.15, 0.8, 0)
    return mask.resize(size, Image.Resampling.BOX)


def style_window(style: str | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part (left, top, right, bottom) that a style leaves to the scene."""
    margins = STYLES[style][0] if style else (0, 0, 0, 0)
    left, top, right, bottom = (margin * (min(size) // 8) for margin in margins)
    return left, top, size[0] - right, size[1] - bottom


def _star() -> list[tuple[float, float]]:
    radii = (1.0, 0.45)
    angles = [math.pi * index / 5 for index in range(10)]
    return [(math.sin(a) * radii[i % 2], -math.cos(a) * radii[i % 2]) for i, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    points = []
    for index in range(60):
        t = 2 * math.pi * index / 60
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 15.5))
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.9), (1, 0.8), (-1, 0.8)],
    "cross": [
        *[(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)],
        *[(0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34)],
    ],
    "star": _star(),
    "heart": _heart(),
}


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _jitter(rng: np.random.Generator, color: Color) -> Color:
    shifted = np.clip(np.array(color) + rng.integers(-5, 6, size=3), 0, 255)
    return tuple(int(value) for value in shifted)
