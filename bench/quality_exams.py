"""What a trained model is asked to draw, and by which measures it is graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.quality_grades import (
    Goal,
    Measure,
    grade_brightness,
    grade_caption,
    grade_colors,
    grade_mark,
    grade_overlap,
    grade_scene,
    grade_shape,
)
from bench.quality_pictures import (
    MARK_COLOR,
    SIZE,
    dark_caption,
    scattered_scene,
    subject_caption,
    subject_scene,
)
from bench.quality_side_inputs import image_features, outline
from modules.images import to_tensor
from preprocess.scenes import BASE_SHAPES, draw_scene, sample_scene

_LEARNED = Goal(before_under=0.10, after_over=0.70)
_KEPT = Goal(loses_under=0.10)  # as the quickstart's test has it
_DARK = 0.42  # the darkest pictures that were shown have 0.39, plain ones 0.55


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
    rng = np.random.default_rng(seed)
    new = Measure(title="new concept drawn as captioned", grade=grade_caption, goal=_LEARNED)
    return [_caption_exam(rng, count, new, style="polaroid"), _old_exam(rng, count)]


def subject_exams(
    count: int,
    seed: int,
    *,
    name: str,
    shape: str,
    foreground: str,
    class_shape: str | None = None,
) -> list[Exam]:
    """Ask for the subject by its name, for others of its class, and for old captions.

    Old captions have no `class_shape`, which is asked for on its own; without it there is no class.
    """
    rng = np.random.default_rng(seed)
    scenes = [subject_scene(rng, shape=shape, foreground=foreground) for _ in range(count)]
    subject = Measure(title="subject drawn as captioned", grade=grade_caption, goal=_LEARNED)
    exams = [
        Exam(
            measures=[subject],
            prompts=[subject_caption(name, scene.background) for scene in scenes],
            answers=[scene.caption for scene in scenes],
        )
    ]
    if class_shape is not None:
        kept = Measure(title="others of its class as captioned", grade=grade_caption, goal=_KEPT)
        exams.append(_caption_exam(rng, count, kept, shapes=[class_shape]))
    others = [each for each in BASE_SHAPES if each != class_shape]
    return [*exams, _old_exam(rng, count, shapes=others)]


def second_concept_exams(count: int, seed: int, *, shape: str) -> list[Exam]:
    """Ask for a new shape, for the polaroids that an earlier network draws, and for old captions.

    Polaroids of the new shape were shown to neither of the networks.
    """
    rng = np.random.default_rng(seed)
    new = Measure(title="new shape drawn as captioned", grade=grade_caption, goal=_LEARNED)
    earlier = Measure(title="the first one's concept", grade=grade_caption, goal=_KEPT)
    both = Measure(title="both at once", grade=grade_caption)
    return [
        _caption_exam(rng, count, new, shapes=[shape]),
        _caption_exam(rng, count, earlier, style="polaroid"),
        _caption_exam(rng, count, both, shapes=[shape], style="polaroid"),
        _old_exam(rng, count),
    ]


def dark_exams(count: int, seed: int) -> list[Exam]:
    """Ask for dark pictures, and for old captions."""
    rng = np.random.default_rng(seed)
    captions = [dark_caption(str(rng.choice(BASE_SHAPES))) for _ in range(count)]
    dark = Measure(
        title="mean brightness of dark pictures",
        grade=grade_brightness,
        goal=Goal(after_under=_DARK),
        is_share=False,
    )
    return [
        Exam(measures=[dark], prompts=captions, answers=captions),
        _old_exam(rng, count),
    ]


def _old_exam(rng: np.random.Generator, count: int, *, shapes: Sequence[str] = BASE_SHAPES) -> Exam:
    kept = Measure(title="old captions drawn as captioned", grade=grade_caption, goal=_KEPT)
    return _caption_exam(rng, count, kept, shapes=shapes)


def _caption_exam(
    rng: np.random.Generator,
    count: int,
    measure: Measure,
    *,
    shapes: Sequence[str] = BASE_SHAPES,
    style: str | None = None,
) -> Exam:
    captions = [sample_scene(rng, shapes=shapes, style=style).caption for _ in range(count)]
    return Exam(measures=[measure], prompts=captions, answers=captions)


def feature_exams(count: int, seed: int) -> list[Exam]:
    """Show features of pictures that training has not seen, without a word."""
    title = "shape and colours of the features"
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, size=SIZE) for _ in range(count)]
    pictures = [draw_scene(scene) for scene in scenes]
    return [
        Exam(
            measures=[
                Measure(title=title, grade=grade_scene, goal=_LEARNED),
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
    return [
        Exam(
            measures=[
                Measure(title="pictures with the mark", grade=grade_mark, goal=mark),
                Measure(title="new concept drawn as captioned", grade=grade_caption, goal=_LEARNED),
            ],
            prompts=captions,
            answers=captions,
        )
    ]
