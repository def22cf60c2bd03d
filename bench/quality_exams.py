"""What a trained model is asked to draw, and how the pictures are graded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.quality_data import (
    MARK_BOX,
    MARK_COLOR,
    SIZE,
    foreground_mask,
    image_features,
    outline,
    scattered_scene,
)
from bench.shape_classifier import classify, hit
from modules.images import to_tensor
from preprocess.scenes import PALETTE, Scene, draw_scene, sample_scene

_MAX_MARK_DISTANCE = 60.0  # of colours, as the classifier's
_MIN_MARK_SHARE = 0.5
_MAX_LOSS = 0.10  # of old captions, as the quickstart's test has it


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


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Pictures to draw; all sequences have one item for each."""

    measures: Sequence[Measure]
    prompts: Sequence[str]
    answers: Sequence[Any]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    guides: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict)
    """What is shown beside the drawn pictures, by its title."""
    labels: Sequence[str] = ()
    """What is written below; without them the prompts."""

    def means(self, images: Sequence[Image.Image]) -> list[float]:
        """Return the mean grade of the pictures by each measure."""
        pairs = list(zip(images, self.answers, strict=True))
        return [float(np.mean([m.grade(*pair) for pair in pairs])) for m in self.measures]


def concept_exams(count: int, seed: int) -> list[Exam]:
    """Ask for the new concept, a polaroid, and for what the base can draw already."""
    new = Measure(
        title="new concept drawn as captioned",
        grade=grade_caption,
        goal=Goal(before_under=0.10, after_over=0.70),
    )
    old = Measure(
        title="old captions drawn as captioned",
        grade=grade_caption,
        goal=Goal(loses_under=_MAX_LOSS),
    )
    rng = np.random.default_rng(seed)
    exams = []
    for measure, style in ((new, "polaroid"), (old, None)):
        captions = [sample_scene(rng, style=style).caption for _ in range(count)]
        exams.append(Exam(measures=[measure], prompts=captions, answers=captions))
    return exams


def feature_exams(count: int, seed: int) -> list[Exam]:
    """Show features of pictures that training has not seen, without a word."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, size=SIZE) for _ in range(count)]
    pictures = [draw_scene(scene) for scene in scenes]
    both = Goal(before_under=0.10, after_over=0.70)
    return [
        Exam(
            measures=[
                Measure(title="shape and colours of the features", grade=grade_scene, goal=both),
                Measure(title="shape alone", grade=grade_shape),
                Measure(title="both colours alone", grade=grade_colors),
            ],
            prompts=[""] * count,
            answers=scenes,
            extras={"pfg": torch.from_numpy(np.stack([image_features(p) for p in pictures]))},
            guides={"features' picture": pictures},
            labels=[scene.caption for scene in scenes],
        )
    ]


def guide_exams(count: int, seed: int) -> list[Exam]:
    """Show outlines of shapes of any place and size beside captions that say neither."""
    rng = np.random.default_rng(seed)
    scenes = [scattered_scene(rng) for _ in range(count)]
    pictures = [draw_scene(scene) for scene in scenes]
    guides = [outline(picture) for picture in pictures]
    follows = Goal(before_under=0.60, after_over=0.80)
    return [
        Exam(
            measures=[
                Measure(
                    title="IoU of the drawn shape with the guide's, mean",
                    grade=grade_overlap,
                    goal=follows,
                    is_share=False,
                ),
                Measure(title="both colours of the caption", grade=grade_colors),
            ],
            prompts=[scene.caption for scene in scenes],
            answers=scenes,
            extras={"control": torch.stack([to_tensor(g, minimum=0.0) for g in guides])},
            guides={"guide": guides},
        )
    ]


def mark_exams(count: int, seed: int, *, is_masked: bool) -> list[Exam]:
    """Ask for polaroids after training on marked ones; colours of the mark are left out."""
    rng = np.random.default_rng(seed)
    captions: list[str] = []
    while len(captions) < count:
        scene = sample_scene(rng, style="polaroid")
        if MARK_COLOR not in (scene.foreground, scene.background):
            captions.append(scene.caption)
    mark = Goal(after_under=0.05) if is_masked else Goal(before_under=0.05, after_over=0.70)
    concept = Goal(before_under=0.10, after_over=0.70)
    return [
        Exam(
            measures=[
                Measure(title="pictures with the mark", grade=grade_mark, goal=mark),
                Measure(title="new concept drawn as captioned", grade=grade_caption, goal=concept),
            ],
            prompts=captions,
            answers=captions,
        )
    ]


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
