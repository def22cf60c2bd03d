"""One recipe from its YAML to its grades: train as a person does, load the files, draw, grade."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from bench.quality_exams import Exam
from bench.quality_recipes import Recipe
from bench.quality_table import Grade, Result
from modules.grids import make_sheet

NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.5

_AT_A_TIME = 20
_SHOWN = 9  # pictures of each exam on the sheet


def measure(
    name: str,
    recipe: Recipe,
    *,
    model: str,
    work: Path,
    count: int,
    seed: int,
    steps: int | None = None,
) -> Result:
    """Train a recipe and grade what it draws, before and after; writes `work`/<name>.png."""
    from modules.config import load
    from modules.trainer import Trainer

    started = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.yaml"
    sections = recipe.sections(name, model=model, work=work, seed=seed, steps=steps)
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    config = load(path)
    trainer = Trainer.from_config(config)
    assert trainer is not None
    trainer.train()
    trained_at = time.perf_counter()

    # Other pictures and noise than any that settings were chosen by, as long as the seed is new.
    exams = recipe.task.exams(count, 10_000 + 1000 * seed)
    rounds = [
        [draw(exam, *load_parts(config, saved_in), seed=seed) for exam in exams]
        for saved_in in (None, trainer.directory)
    ]
    write_sheet(work / f"{name}.png", exams, *rounds)
    return Result(
        title=recipe.title,
        steps=config.train.max_train_steps or 0,
        settings=recipe.settings(),
        grades=[
            Grade.of(measure, before, after)
            for exam, *images in zip(exams, *rounds, strict=True)
            for measure, before, after in zip(exam.measures, *map(exam.means, images), strict=True)
        ],
        seconds=round(trained_at - started),
        count=count,
        seed=seed,
        date=date.today().isoformat(),
        versions=", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers")),
    )


def load_parts(config: Any, directory: Path | None) -> tuple[Any, list[Any]]:
    """Load a run's model and networks from the files in `directory`; None: as training began."""
    from modules import models
    from modules.component import build
    from modules.savers import network_stem, suffixes_of

    trains_base, name = bool(config.model.trainable), str(config.save.name)
    base = config.model.path
    if trains_base and directory is not None:
        base = str(directory / name)
    model = models.load(base)
    networks = []
    for key, section in config.networks.items():
        network = build(section.module, section.args)
        network.attach(model)
        if directory is not None:
            alone = len(config.networks) == 1 and not trains_base
            stem = network_stem(name, key, alone=alone)
            network.load(directory / (stem + suffixes_of(network)[0]))
        networks.append(network)
    return model, networks


def draw(exam: Exam, model: Any, networks: Sequence[Any], *, seed: int) -> list[Image.Image]:
    """Draw all pictures of an exam, each from noise of its own."""
    from bench.quality_data import SIZE
    from modules.drawing import draw_images

    images: list[Image.Image] = []
    for start in range(0, len(exam.prompts), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        first = 100_000 * (seed + 1) + start
        images += draw_images(
            model,
            networks,
            prompts=exam.prompts[part],
            seeds=range(first, first + len(exam.prompts[part])),
            size=SIZE,
            extras={key: values[part] for key, values in exam.extras.items()},
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
        )
    return images


def write_sheet(
    path: Path,
    exams: Sequence[Exam],
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]],
) -> None:
    """Write the first pictures of every exam before and after, below each other."""
    sheets = []
    for exam, *drawn in zip(exams, before, after, strict=True):
        columns: Mapping[str, Sequence[Image.Image]] = {
            **exam.guides,
            **dict(zip(("before", "after"), drawn, strict=True)),
        }
        labels = list(exam.labels or exam.prompts)[:_SHOWN]
        sheets.append(make_sheet(list(columns.values()), list(columns), labels))
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    whole.save(path)
