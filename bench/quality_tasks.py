"""What the quality recipes teach: pictures to learn from, and pictures to ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.quality_exams import Exam, concept_exams, feature_exams, guide_exams, mark_exams

Step = Mapping[str, Any]
"""One of `prepare:`; in its arguments {pictures}, {masks} and {dataset} stand for folders."""

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

    def prepare(self, folder: Path, *, model: str, seed: int) -> list[dict[str, Any]]:
        """Return the steps that make this task's dataset in `folder`."""
        buckets = {"directory": "{pictures}", "output": "{dataset}", **_BUCKETS}
        latents = {"directory": "{dataset}", "model": model, "batch_size": 16}
        steps = [
            {**self.draw, "args": {**self.draw["args"], "seed": seed}},
            {"module": "preprocess.bucketing.bucketing", "args": buckets},
            {"module": "preprocess.latent.latent", "args": latents},
            *self.finish,
        ]
        folders = {f"{{{part}}}": f"{folder}/{part}" for part in ("pictures", "masks", "dataset")}
        return [
            {
                "module": step["module"],
                "args": {
                    key: folders.get(str(value), value) for key, value in step["args"].items()
                },
            }
            for step in steps
        ]


_PLAIN = {"output": "{pictures}", "count": 300}
_STYLED = {"output": "{pictures}", "count": 40, "plain_count": 20}
_MASKS = {"directory": "{dataset}", "origin": "images", "masks": "{masks}"}

POLAROIDS = Task(
    name="polaroids",
    draw={
        "module": "preprocess.draw_shapes.draw_dataset",
        "args": {**_STYLED, "style": "polaroid", "sizes": ["64x64"]},
    },
    exams=concept_exams,
)
# Without the text encoder the style leaks into plain captions, the more the fewer are among them.
POLAROIDS_AMONG_PLAIN = replace(
    POLAROIDS,
    name="polaroids_among_plain",
    draw={**POLAROIDS.draw, "args": {**POLAROIDS.draw["args"], "plain_count": 100}},
)
FEATURES = Task(
    name="features",
    draw={
        "module": "preprocess.draw_shapes.draw_dataset",
        "args": {**_PLAIN, "sizes": ["64x64"]},
    },
    finish=[{"module": "bench.quality_data.write_features", "args": {"directory": "{dataset}"}}],
    exams=feature_exams,
)
GUIDES = Task(
    name="guides",
    draw={"module": "bench.quality_data.draw_scattered", "args": _PLAIN},
    finish=[{"module": "bench.quality_data.write_guides", "args": {"directory": "{dataset}"}}],
    exams=guide_exams,
)
MARKED, MASKED = (
    Task(
        name="marked",
        draw={
            "module": "bench.quality_data.draw_marked",
            "args": {**_STYLED, "masks": "{masks}"},
        },
        finish=[{"module": "preprocess.create_mask.create_mask", "args": _MASKS}],
        exams=partial(mark_exams, is_masked=is_masked),
    )
    for is_masked in (False, True)
)
