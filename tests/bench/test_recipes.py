"""The recipes of the quality table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench.recipes import RECIPES
from bench.recipes.recipe import Recipe, locon, lora
from modules.component_checks import check_components
from modules.config import load

ROOT = Path(__file__).parent.parent.parent
TINY_SD = ROOT / "assets" / "tiny-sd"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_configs(name, tmp_path):
    first = tmp_path / "first.safetensors"
    first.touch()
    files = {"model": str(TINY_SD), "work": tmp_path, "first": str(first)}
    sections = RECIPES[name].sections(name, **files, seed=3)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    config = load(path)
    check_components(config)
    assert (
        config.prepare[0].args["output"] == f"{tmp_path}/data/{RECIPES[name].task.name}-3/pictures"
    )
    assert config.prepare[0].args["seed"] == 3
    values = [value for step in config.prepare for value in step.args.values()]
    assert not any("{" in value for value in values if isinstance(value, str))


def test_every_file_of_recipes_is_in_the_table_and_none_hides_another():
    import bench.recipes as package

    kinds = {name: kind for name, kind in vars(package).items() if name.isupper()}
    whole = kinds.pop("RECIPES")
    assert sum(map(len, kinds.values())) == len(whole)
    titles = [recipe.title for recipe in whole.values()]
    assert len(set(titles)) == len(titles)
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert files - {"__init__", "recipe"} == {name.lower() for name in kinds}


def test_a_later_network_builds_upon_the_first_ones_file(tmp_path):
    files = {"model": str(TINY_SD), "work": tmp_path, "seed": 0, "first": "first.safetensors"}
    networks = RECIPES["merged"].sections("merged", **files)["networks"]
    assert networks["first"]["resume"] == "first.safetensors"
    assert networks["first"]["merge"]
    assert "resume" not in networks["second"]


def test_settings_in_a_line():
    recipe = Recipe(
        title="both",
        learning_rate=1e-3,
        networks={"one": {**locon(rank=8), "train": False, "resume": "{first}"}, "two": lora()},
        further={
            "train": {"stop_text_encoders_after": 200},
            "prior": {"args": {"path": "{prior}"}},
        },
    )
    assert recipe.settings() == (
        "`networks.lora.LoRA` (rank 8, targets [unet, text_encoders], conv_rank 16, train false, "
        "resume what was trained first) with `networks.lora.LoRA` (rank 16, targets [unet, "
        "text_encoders]); learning rate 0.001, batch size 8; 40 pictures to learn from and 20 "
        "plain ones; caption_dropout 0.1; `train`: stop_text_encoders_after 200; `prior`: args "
        "{path: class images}"
    )
