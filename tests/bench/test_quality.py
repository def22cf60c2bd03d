"""The quality table; a recipe of each sort end to end under `-m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench import quality
from bench.quality_table import Result, read_results, write_results
from bench.recipes import RECIPES

ROOT = Path(__file__).parent.parent.parent
KEPT = Result(
    title="full fine-tuning",
    steps=40,
    settings="all",
    grades=[],
    seconds=12,
    count=10,
    seed=5,
    date="2030-01-02",
    versions="torch 2.0",
)


def test_an_unknown_recipe_is_named(capsys):
    assert quality.main(["--only", "lora", "lyra"]) == 2
    assert "--only: lyra is no recipe; use some of lora, locon" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["masked"], ["masked.safetensors"]),
        (["up_blocks"], ["up_blocks/model_index.json"]),
        (["pfg", "controlnet"], ["pfg-pfg.pt", "pfg-lora.safetensors"]),
        (["merged"], ["merged.safetensors"]),
        (["dreambooth_prior"], ["dreambooth_prior.safetensors"]),
        (
            ["pivotal_tuning"],
            ["pivotal_tuning-tokens/toy.safetensors", "pivotal_tuning-locon.safetensors"],
        ),
    ],
)
def test_recipes_run_end_to_end_and_keep_other_rows(names, files, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page, work = tmp_path / "quality.md", tmp_path / "work"
    write_results(work / "results.json", {"full": KEPT})
    options = ["--output", str(page), "--work", str(work), "--steps", "12", "--count", "4"]
    assert quality.main(["--only", *names, *options]) == 0
    results = read_results(work / "results.json")
    assert set(results) == {"full", *names}
    assert results["full"] == KEPT
    for name in names:
        assert results[name].steps == 12
        with Image.open(work / f"{name}.png") as sheet:
            assert sheet.width > 400
        text = page.read_text(encoding="utf-8")
        assert f"| {RECIPES[name].title} | 12 |" in text
        assert "    python bench/quality.py --count 4 --steps 12\n" in text
    for file in files:
        assert (work / "runs" / names[0] / file).is_file()
