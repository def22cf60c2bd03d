"""Random masks for inpainting: brush strokes, rectangles, ellipses, sometimes the whole image.

Strokes and boxes after Suvorov et al. 2021, arXiv:2109.07161; that everything is masked in a
quarter of the images is how Stable Diffusion's inpainting model was trained (its model card; the
method is of Rombach et al. 2022, arXiv:2112.10752).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from modules.images import Size

Range = tuple[float, float]  # least, most


def draw_mask(
    size: Size,
    rng: np.random.Generator,
    *,
    whole: float = 0.25,
    most: int = 4,
    stroke_width: Range = (0.05, 0.3),
    stroke_length: Range = (0.15, 0.6),
    most_turns: int = 4,
    shape_side: Range = (0.15, 0.6),
) -> Tensor:
    """Draw a mask for an image of `size` (width, height): (1, H, W), 1 where it is painted.

    One mask has things of one kind: strokes, rectangles or ellipses, each kind as often.

    Args:
        whole: probability of masking everything, which keeps the model able to draw from a prompt.
        most: strokes or shapes of a mask; their number is drawn from 1 to this.
        stroke_width: of a brush, in parts of the image's shorter side.
        stroke_length: of a straight piece of a stroke, in the same parts.
        most_turns: a stroke turns up to so often, by at most 120 degrees each time.
        shape_side: width and height of a rectangle or ellipse, in the same parts.
    """
    width, height = size
    if rng.random() < whole:
        return torch.ones(1, height, width)
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    kind = rng.integers(3)
    for _ in range(rng.integers(1, most, endpoint=True)):
        start = rng.uniform((0, 0), size)
        if kind == 0:
            brush = _length(size, rng, stroke_width)
            _draw_stroke(draw, _turning_line(start, size, rng, stroke_length, most_turns), brush)
        else:
            sides = np.array([_length(size, rng, shape_side) for _ in range(2)])
            box = [*(start - sides / 2), *(start + sides / 2)]
            (draw.rectangle if kind == 1 else draw.ellipse)(box, fill=1)
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None]


def draw_masks(count: int, size: Size) -> Tensor:
    """Draw masks for `count` images, (count, 1, H, W), at random from torch's generator."""
    seeds = torch.randint(2**63 - 1, (count,), device="cpu").tolist()
    return torch.stack([draw_mask(size, np.random.default_rng(seed)) for seed in seeds])


def _length(size: Size, rng: np.random.Generator, parts: Range) -> float:
    return rng.uniform(*parts) * min(size)


def _turning_line(
    start: np.ndarray, size: Size, rng: np.random.Generator, length: Range, most_turns: int
) -> list[np.ndarray]:
    """Corners of a line that stays in the image, from `start` on."""
    angle = rng.uniform(0, 2 * math.pi)
    points = [start]
    for _ in range(rng.integers(1, most_turns + 1, endpoint=True)):
        step = _length(size, rng, length) * np.array([math.cos(angle), math.sin(angle)])
        points.append(np.clip(points[-1] + step, (0, 0), size))
        angle += rng.uniform(-2, 2) * math.pi / 3
    return points


def _draw_stroke(draw: ImageDraw.ImageDraw, points: list[np.ndarray], width: float) -> None:
    draw.line([tuple(point) for point in points], fill=1, width=max(1, round(width)))
    for point in points:  # round ends and corners
        draw.ellipse([*(point - width / 2), *(point + width / 2)], fill=1)
