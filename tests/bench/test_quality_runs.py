"""What a recipe of the quality table draws before and after training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from bench import quality_runs
from bench.quality_runs import draw, draw_before, load_parts
from bench.recipes import RECIPES
from modules import models
from modules.config import load

ROOT = Path(__file__).parent.parent.parent
TINY_SD = ROOT / "assets" / "tiny-sd"


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Write a recipe's YAML and return its config."""
    monkeypatch.setattr(quality_runs, "NUM_INFERENCE_STEPS", 2)

    def write(name: str, **options):
        path = tmp_path / f"{name}.yaml"
        sections = RECIPES[name].sections(
            name, model=str(TINY_SD), work=tmp_path, seed=0, **options
        )
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return load(path)

    return write


def pixels(rounds):
    return [[image.tobytes() for image in images] for images in rounds]


def test_recipes_that_begin_as_the_base_share_what_it_draws(configure):
    recipe = RECIPES["lora"]
    exams = recipe.task.exams(1, 0)
    drawn = {}
    found = draw_before(recipe, configure("lora"), exams, seed=0, drawn=drawn)
    base = models.load(str(TINY_SD))
    assert pixels(found) == pixels([draw(exam, base, [], seed=0) for exam in exams])
    assert draw_before(RECIPES["loha"], configure("loha"), exams, seed=0, drawn=drawn) is found
    again = draw_before(recipe, configure("lora"), exams, seed=1, drawn=drawn)
    assert pixels(again) != pixels(found)


@pytest.mark.parametrize("name", ["hypernetwork", "zero_terminal_snr"])
def test_others_draw_what_they_begin_as(configure, name):
    recipe = RECIPES["lora"]
    exams = recipe.task.exams(1, 0)
    drawn = {}
    found = draw_before(recipe, configure("lora"), exams, seed=0, drawn=drawn)
    other = draw_before(recipe, configure(name), exams, seed=0, drawn=drawn)
    assert pixels(other) != pixels(found)


def test_a_frozen_network_is_there_from_the_beginning(configure, tmp_path):
    config = configure("locon")
    _, (network,) = load_parts(config, None)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.05)
    file = tmp_path / "first.safetensors"
    network.save(file, dtype=torch.float32, metadata={})
    exams = RECIPES["frozen"].task.exams(1, 0)[:1]
    pictures = [
        draw_before(RECIPES[name], configure(name, first=str(file)), exams, seed=0, drawn={})
        for name in ("frozen", "merged")
    ]
    base = models.load(str(TINY_SD))
    assert pixels(pictures[0]) != pixels([draw(exam, base, [], seed=0) for exam in exams])
    for kept, merged in zip(*pictures[0], *pictures[1], strict=True):
        difference = [abs(a - b) for a, b in zip(kept.tobytes(), merged.tobytes(), strict=True)]
        assert max(difference) <= 2
