"""Say what a picture of the drawn kind shows, by its pixels alone: the quickstart's measure.

The background is the median of the border, the foreground the median of what differs from it;
the shape is the template with which the foreground's mask overlaps most. No network is involved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from preprocess.scenes import (
    PALETTE,
    SHAPES,
    WHITE,
    draw_mask,
    style_window,
)

MIN_IOU = 0.80
MIN_FRAME_SHARE = 0.85
MAX_CLUTTER = 0.04
MAX_COLOR_DISTANCE = 60.0  # palette colours lie at least 80 apart, of 255 per channel

_GRID = 48
_MIN_EXTENT = 6  # pixels
_MAX_ASPECT = 1.5
_MAX_RESIDUE = 50.0
_BORDER = 2  # pixels
_MIN_CONTRAST = 40.0
_MAX_FRAME_DISTANCE = 45.0
_CAPTION = re.compile(r"\ban? (\w+) (\w+) on an? (\w+) background(.*)$")


@dataclass(frozen=True)
class Classification:
    """Hold what a picture shows; names are None where nothing is near enough."""

    shape: str | None
    iou: float  # overlap with that shape's template, 0 to 1
    foreground: str | None
    background: str | None
    clutter: float  # part of the pixels in neither colour nor a mixture of both, 0 to 1
    frame_share: float  # part of the frame's pixels that are white, 0 to 1

    @property
    def is_framed(self) -> bool:
        return self.frame_share >= MIN_FRAME_SHARE


@dataclass(frozen=True)
class Caption:
    """Hold what a caption promises."""

    shape: str
    foreground: str
    background: str
    is_polaroid: bool


def classify(image: Image.Image) -> Classification:
    """Classify a picture; that of a polaroid is looked at inside its frame."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)  # (height, width, 3)
    left, top, right, bottom = style_window("polaroid", image.size)
    is_frame = np.ones(pixels.shape[:2], dtype=bool)
    # One pixel of tolerance: the frame's inner edge is smooth in a decoded picture.
    is_frame[top - 1 : bottom + 1, left - 1 : right + 1] = False
    distance = np.linalg.norm(pixels - np.array(WHITE), axis=-1)
    frame_share = float((distance[is_frame] < _MAX_FRAME_DISTANCE).mean())
    if frame_share >= MIN_FRAME_SHARE:
        pixels = pixels[top + 1 : bottom - 1, left + 1 : right - 1]
    background, foreground, coverage = separate(pixels)
    clutter = _measure_clutter(pixels, background, foreground, coverage)
    shape, iou = _match(coverage)
    return Classification(
        shape=shape if iou >= MIN_IOU and clutter <= MAX_CLUTTER else None,
        iou=iou,
        foreground=_name_color(foreground) if coverage.any() else None,
        background=_name_color(background),
        clutter=clutter,
        frame_share=frame_share,
    )


def hit(image: Image.Image, caption: str) -> bool:
    """Say whether a picture shows its caption: shape, both colours, framed if and only if asked.

    Raises ValueError if the caption isn't of the drawn kind.
    """
    wanted = read_caption(caption)
    found = classify(image)
    return (
        found.shape == wanted.shape
        and found.foreground == wanted.foreground
        and found.background == wanted.background
        and found.is_framed == wanted.is_polaroid
    )


def read_caption(caption: str) -> Caption:
    """Read a caption such as `a red circle on a blue background, polaroid`."""
    match = _CAPTION.search(caption.strip())
    if match is None:
        raise ValueError(
            f"caption: {caption!r} has no 'a COLOUR SHAPE on a COLOUR background'; reword it"
        )
    foreground, shape, background, rest = match.groups()
    if shape not in SHAPES or foreground not in PALETTE or background not in PALETTE:
        raise ValueError(
            f"caption: {caption!r} names an unknown shape or colour; "
            f"use {', '.join(SHAPES)} and {', '.join(PALETTE)}"
        )
    return Caption(shape, foreground, background, "polaroid" in rest)


def separate(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the background's and foreground's colours and the foreground's coverage, 0 to 1."""
    is_border = np.ones(pixels.shape[:2], dtype=bool)
    is_border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    background = np.median(pixels[is_border], axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    far = distance > max(_MIN_CONTRAST, 0.6 * float(np.quantile(distance, 0.98)))
    if not far.any():
        return background, background, np.zeros(pixels.shape[:2], dtype=np.float32)
    foreground = np.median(pixels[far], axis=0)
    axis = foreground - background
    coverage = ((pixels - background) @ axis / (axis @ axis)).clip(0, 1)
    return background, foreground, coverage


def _measure_clutter(
    pixels: np.ndarray, background: np.ndarray, foreground: np.ndarray, coverage: np.ndarray
) -> float:
    """Return the part of the pixels that no mixture of the two colours explains."""
    mixture = background + coverage[..., None] * (foreground - background)
    return float((np.linalg.norm(pixels - mixture, axis=-1) > _MAX_RESIDUE).mean())


def _match(coverage: np.ndarray) -> tuple[str | None, float]:
    """Return the shape whose template the foreground, scaled to a square, overlaps most."""
    mask = coverage > 0.5
    best: tuple[str | None, float] = (None, 0.0)
    for count in (1, 2):  # 2: one stray pixel in a row or column doesn't widen the box
        rows, columns = (np.flatnonzero(mask.sum(axis=axis) >= count) for axis in (1, 0))
        if len(rows) < _MIN_EXTENT or len(columns) < _MIN_EXTENT:
            continue
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        best = max(best, _match_box(coverage, mask, box), key=lambda match: match[1])
    return best


def _match_box(
    coverage: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]
) -> tuple[str | None, float]:
    height, width = mask[box].shape
    if max(height, width) > _MAX_ASPECT * min(height, width):
        return None, 0.0
    scaled = Image.fromarray((coverage[box] * 255).astype(np.uint8))
    grid = np.asarray(scaled.resize((_GRID, _GRID), Image.Resampling.BILINEAR)) > 127
    # What lies outside of the box counts against the match.
    stray = (mask.sum() - mask[box].sum()) * _GRID * _GRID / (height * width)
    scores = {
        name: float((grid & template).sum() / ((grid | template).sum() + stray))
        for name, template in _templates().items()
    }
    name = max(scores, key=scores.__getitem__)
    return name, scores[name]


@cache
def _templates() -> dict[str, np.ndarray]:
    templates = {}
    for name in SHAPES:
        mask = draw_mask(name, (4 * _GRID, 4 * _GRID), (2 * _GRID, 2 * _GRID), 1.8 * _GRID)
        mask = mask.crop(mask.getbbox()).resize((_GRID, _GRID), Image.Resampling.BOX)
        templates[name] = np.asarray(mask) > 127
    return templates


def _name_color(color: np.ndarray) -> str | None:
    distances = {name: np.linalg.norm(color - np.array(rgb)) for name, rgb in PALETTE.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= MAX_COLOR_DISTANCE else None
