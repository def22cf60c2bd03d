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
from bench.quality_pictures import SIZE
from bench.quality_table import Grade, Result
from bench.recipes import Recipe
from modules.grids import make_sheet
from networks.base import Adapter

NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.5

_AT_A_TIME = 20
_SHOWN = 9  # pictures of each exam on the sheet

Drawn = dict[str, list[list[Image.Image]]]
"""What the base alone drew for the exams of a task, by a name for all that it was asked."""


def measure(
    name: str,
    recipe: Recipe,
    *,
    model: str,
    work: Path,
    count: int,
    seed: int,
    steps: int | None = None,
    drawn: Drawn | None = None,
) -> Result:
    """Train a recipe and grade what it draws, before and after; writes `work`/<name>.png.

    `drawn` is filled, so that recipes that begin as the base alone needn't all draw the same.
    """
    started = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"model": model, "work": work, "seed": seed, "steps": steps}
    if recipe.first is not None:
        _, folder = train(f"{name}-first", recipe.first, **settings)
        settings["first"] = str(folder / f"{name}-first.safetensors")
    config, directory = train(name, recipe, **settings)
    trained_at = time.perf_counter()

    # Other pictures and noise than any that settings were chosen by, as long as the seed is new.
    exams = recipe.task.exams(count, 10_000 + 1000 * seed)
    parts = load_parts(config, directory)
    rounds = [
        draw_before(recipe, config, exams, seed=seed, drawn={} if drawn is None else drawn),
        [draw(exam, *parts, seed=seed) for exam in exams],
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


def draw_before(
    recipe: Recipe, config: Any, exams: Sequence[Exam], *, seed: int, drawn: Drawn
) -> list[list[Image.Image]]:
    """Draw with what a recipe begins as; take what the base alone drew, if it begins as that."""
    model, networks = load_parts(config, None)
    is_base = recipe.first is None and all(isinstance(each, Adapter) for each in networks)
    schedule = str(sorted(model.scheduler.config.items(), key=str))
    key = f"{model.path} {recipe.task.name} {seed} {len(exams[0].prompts)} {schedule}"
    if is_base and key in drawn:
        return drawn[key]
    images = [draw(exam, model, networks, seed=seed) for exam in exams]
    if is_base:
        drawn[key] = images
    return images


def train(name: str, recipe: Recipe, *, work: Path, **settings: Any) -> tuple[Any, Path]:
    """Write a recipe's YAML and train it; returns its config and its run's folder."""
    from modules.config import load
    from modules.trainer import Trainer

    path = work / f"{name}.yaml"
    sections = recipe.sections(name, work=work, **settings)
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    config = load(path)
    trainer = Trainer.from_config(config)
    assert trainer is not None
    trainer.train()
    return config, trainer.directory


def load_parts(config: Any, directory: Path | None) -> tuple[Any, list[Any]]:
    """Load a run's model and networks from the files in `directory`; None: as training began."""
    from modules import models
    from modules.parts import build_network, build_objective
    from modules.savers import network_stem, suffixes_of

    trains_base, name = bool(config.model.trainable), str(config.save.name)
    base = config.model.path
    if trains_base and directory is not None:
        base = str(directory / name)
    model = models.load(base)
    build_objective(config, model)  # the model is sampled by the schedule that it was trained by
    alone = sum(section.train for section in config.networks.values()) == 1 and not trains_base
    networks = []
    for key, section in config.networks.items():
        network = build_network(section, {}, model)
        if directory is not None and section.train:
            stem = network_stem(name, key, alone=alone)
            network.load(directory / (stem + suffixes_of(network)[0]))
        networks.append(network)
    return model, networks


def draw(exam: Exam, model: Any, networks: Sequence[Any], *, seed: int) -> list[Image.Image]:
    """Draw all pictures of an exam, each from noise of its own."""
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
