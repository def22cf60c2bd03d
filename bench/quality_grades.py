"""How drawn pictures are graded: by their pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bench.quality_pictures import MARK_BOX, MARK_COLOR
from bench.quality_side_inputs import foreground_mask
from bench.shape_classifier import classify, hit
from preprocess.scenes import PALETTE, Scene, draw_scene

_MAX_MARK_DISTANCE = 60.0  # of colours, as the classifier's
_MIN_MARK_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the means of a measure should be; None where it doesn't matter."""

    before_under: float | None = None
    after_over: float | None = None
    after_under: float | None = None
    loses_under: float | None = None

    def is_reached(self, before: float, after: float) -> bool:
        """Say whether all that is wanted holds."""
        loss = round(before - after, 9)  # 1.0 - 0.9 is a little less than 0.1
        return not (
            (self.before_under is not None and before >= self.before_under)
            or (self.after_over is not None and after <= self.after_over)
            or (self.after_under is not None and after >= self.after_under)
            or (self.loses_under is not None and loss >= self.loses_under)
        )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A grade from 0 to 1 for one picture, given what it should show."""

    title: str
    grade: Callable[[Image.Image, Any], float]
    goal: Goal = Goal()
    is_share: bool = True
    """Each grade is 0 or 1, so that their mean is a share of the pictures."""


def grade_caption(image: Image.Image, caption: str) -> float:
    """Grade shape, both colours, and whether there is a frame."""
    return float(hit(image, caption))


def grade_scene(image: Image.Image, scene: Scene) -> float:
    """Grade shape and both colours, without a polaroid's frame."""
    return grade_caption(image, scene.caption)


def grade_shape(image: Image.Image, scene: Scene) -> float:
    """Grade the shape, of whatever colour."""
    return float(classify(image).shape == scene.shape)


def grade_colors(image: Image.Image, scene: Scene) -> float:
    """Grade both colours, whatever the shape."""
    found = classify(image)
    return float((found.foreground, found.background) == (scene.foreground, scene.background))


def grade_overlap(image: Image.Image, scene: Scene) -> float:
    """Grade how well the foreground covers the scene's shape: intersection over union."""
    drawn, wanted = foreground_mask(image), foreground_mask(draw_scene(scene))
    return float((drawn & wanted).sum() / max(1, (drawn | wanted).sum()))


def grade_mark(image: Image.Image, caption: str) -> float:
    """Grade whether most of the mark's place has the mark's colour."""
    pixels = np.asarray(image.convert("RGB").crop(MARK_BOX), dtype=np.float32)
    distance = np.linalg.norm(pixels - np.array(PALETTE[MARK_COLOR]), axis=-1)
    return float((distance < _MAX_MARK_DISTANCE).mean() > _MIN_MARK_SHARE)


def grade_brightness(image: Image.Image, caption: str) -> float:
    """Measure the mean of all pixels, from 0 for black to 1 for white."""
    return float(np.asarray(image.convert("RGB"), dtype=np.float32).mean() / 255)
