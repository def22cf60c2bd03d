"""What the quality recipes teach: pictures to learn from, and pictures to ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.quality_exams import (
    Exam,
    concept_exams,
    dark_exams,
    feature_exams,
    guide_exams,
    mark_exams,
    second_concept_exams,
    subject_exams,
)
from preprocess.scenes import PALETTE, write_caption

Step = Mapping[str, Any]
"""One of `prepare:`; in its arguments {pictures}, {masks}, {dataset}, {class_pictures} and {prior}
stand for folders."""

_FOLDERS = ("pictures", "masks", "dataset", "class_pictures", "prior")
_BUCKETS = {"resolution": 64, "min_length": 48, "max_length": 80, "step": 16}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Pictures to learn from, and what to ask for afterwards."""

    name: str
    draw: Step
    exams: Callable[[int, int], list[Exam]]
    """From the number of pictures of each kind and a seed."""
    finish: Sequence[Step] = ()
    """What follows on drawing, bucketing and latents."""
    class_prompts: Sequence[str] = ()
    """What class images are drawn of by the base model."""
    class_count: int = 0
    """How many of each prompt."""

    def prepare(self, *, model: str, seed: int) -> list[dict[str, Any]]:
        """Return the steps that make this task's dataset, and one of class images."""
        steps = [
            {**self.draw, "args": {**self.draw["args"], "seed": seed}},
            *_encode("{pictures}", "{dataset}", model=model),
            *self.finish,
        ]
        if self.class_prompts:
            steps += [self._draw_class(n, model=model) for n in range(len(self.class_prompts))]
            steps += _encode("{class_pictures}", "{prior}", model=model)
        return [dict(step) for step in steps]

    def folders(self, place: Path) -> dict[str, str]:
        """Return what stands for the folders, if all of them lie in `place`."""
        return {f"{{{part}}}": f"{place}/{part}" for part in _FOLDERS}

    def _draw_class(self, number: int, *, model: str) -> Step:
        args = {
            "output": f"{{class_pictures}}/{number}",
            "model": model,
            "prompt": self.class_prompts[number],
            "count": self.class_count,
            "width": 64,
            "height": 64,
            "guidance_scale": 3.5,
            "seed": 1000 * number,
            "batch_size": 16,
        }
        return {"module": "preprocess.class_images.class_images", "args": args}


def fill(value: Any, folders: Mapping[str, str]) -> Any:
    """Put folders in place of what stands for them, in all text of a value."""
    if isinstance(value, Mapping):
        return {key: fill(item, folders) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, folders) for item in value]
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(name, folder)
    return value


def _encode(pictures: str, dataset: str, *, model: str) -> list[Step]:
    buckets = {"directory": pictures, "output": dataset, **_BUCKETS}
    latents = {"directory": dataset, "model": model, "batch_size": 16}
    return [
        {"module": "preprocess.bucketing.bucketing", "args": buckets},
        {"module": "preprocess.latent.latent", "args": latents},
    ]


def _shapes(**args: Any) -> Step:
    arguments = {"output": "{pictures}", **args, "sizes": ["64x64"]}
    return {"module": "preprocess.draw_shapes.draw_dataset", "args": arguments}


def _pictures(function: str, **args: Any) -> Step:
    arguments = {"output": "{pictures}", **args}
    return {"module": f"bench.quality_pictures.{function}", "args": arguments}


def _side_inputs(function: str) -> Step:
    arguments = {"directory": "{dataset}"}
    return {"module": f"bench.quality_side_inputs.{function}", "args": arguments}


def _subject(name: str, look: Mapping[str, str], *, count: int, plain_count: int = 0) -> Step:
    return _pictures("draw_subject", name=name, **look, count=count, plain_count=plain_count)


POLAROIDS = Task(
    name="polaroids",
    draw=_shapes(count=40, plain_count=20, style="polaroid"),
    exams=concept_exams,
)
# Without the text encoder the style leaks into plain captions, the more the fewer are among them.
POLAROIDS_AMONG_PLAIN = replace(
    POLAROIDS,
    name="polaroids_among_plain",
    draw=_shapes(count=40, plain_count=100, style="polaroid"),
)
POLAROIDS_AMONG_ODD = replace(
    POLAROIDS,
    name="polaroids_among_odd",
    draw=_pictures("draw_among_odd", count=40, plain_count=20, odd_count=12),
)
HEARTS = Task(
    name="hearts",
    draw=_pictures("draw_shape", shape="heart", count=40, plain_count=20),
    exams=partial(second_concept_exams, shape="heart"),
)
DARK = Task(name="dark", draw=_pictures("draw_dark", count=40, plain_count=20), exams=dark_exams)
FEATURES = Task(
    name="features",
    draw=_shapes(count=300),
    finish=[_side_inputs("write_features")],
    exams=feature_exams,
)
GUIDES = Task(
    name="guides",
    draw=_pictures("draw_scattered", count=300),
    finish=[_side_inputs("write_guides")],
    exams=guide_exams,
)
_MASKS = {"directory": "{dataset}", "origin": "images", "masks": "{masks}"}
MARKED, MASKED = (
    Task(
        name="marked",
        draw=_pictures("draw_marked", masks="{masks}", count=40, plain_count=20),
        finish=[{"module": "preprocess.create_mask.create_mask", "args": _MASKS}],
        exams=partial(mark_exams, is_masked=is_masked),
    )
    for is_masked in (False, True)
)

# A shape that the base can't draw, and one that it can.
_HEART = {"shape": "heart", "foreground": "orange"}
_CROSS = {"shape": "cross", "foreground": "orange"}
_COLORS = list(PALETTE)

DREAMBOOTH = Task(
    name="dreambooth",
    draw=_subject("sks square", _HEART, count=20),
    exams=partial(subject_exams, name="sks square", **_HEART, class_shape="square"),
    class_prompts=[
        write_caption("square", color, _COLORS[(number + 3) % len(_COLORS)])
        for number, color in enumerate(_COLORS)
    ],
    class_count=8,
)
KNOWN_SUBJECT = Task(
    name="known_subject",
    draw=_subject("<toy>", _CROSS, count=20),
    exams=partial(subject_exams, name="<toy>", **_CROSS),
)
NEW_SUBJECT = Task(
    name="new_subject",
    draw=_subject("<toy>", _HEART, count=20, plain_count=20),
    exams=partial(subject_exams, name="<toy>", **_HEART),
)
