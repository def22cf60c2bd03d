"""The training loss is noise, and nobody knows when the run began to overfit."""

from __future__ import annotations

import json

import pytest
import torch
from interrupted_runs import assemble
from PIL import Image
from safetensors.torch import load_file

import main

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
OVERFITTING = {"max_train_epochs": 12, "learning_rate": 0.1}


def curve(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}


@pytest.fixture
def path(write_config):
    return write_config(networks=LORA, train=OVERFITTING, validation=0.4)


def test_one_number_is_enough(path, tmp_path, capfd):
    """Curve, the best weights and a line that says so, by `validation: 0.4` alone."""
    assert main.main([str(path), "save.every_epochs=1"]) == 0
    folder, said = tmp_path / "output" / "run", capfd.readouterr().out
    found = curve(folder)
    assert len(found) == 13
    best = min(list(found)[1:], key=found.__getitem__)
    assert 0 < best < max(found)
    kept, saved, last = (
        load_file(folder / f"run{ending}.safetensors")
        for ending in ("-best", f"-step{best:08d}", "")
    )
    assert all(torch.equal(kept[key], tensor) for key, tensor in saved.items())
    assert any(not torch.equal(kept[key], tensor) for key, tensor in last.items())
    assert "the run overfits" in said
    with Image.open(folder / "loss.png") as picture:
        assert (0xD9, 0x5F, 0x0E) in {color for _, color in picture.convert("RGB").getcolors(99999)}


def test_noise_timesteps_and_images_are_the_same_each_time(path, tmp_path):
    """Of two runs that draw other numbers the first point is the same, bit by bit."""
    for name, seed in (("one", 1), ("two", 2)):
        changed = (f"save.name={name}", f"train.seed={seed}", "train.max_train_epochs=1")
        assert main.main([str(path), *changed]) == 0
    one, two = (curve(tmp_path / "output" / name) for name in ("one", "two"))
    assert one[0] == two[0]
    assert list(one.values())[1] != list(two.values())[1]


def test_what_is_held_out_is_not_trained_on(path):
    trainer = assemble(path)
    dataset, groups = trainer.validation.held_out.dataset, trainer.step_groups()
    held_out = {dataset[number].name for number in trainer.validation.held_out.measured}
    trained = {
        name
        for _ in range(trainer.steps_per_epoch)
        for part in next(groups)
        for name in part.batch.names
    }
    assert held_out
    assert not held_out & trained
    assert len(held_out | trained) == 8
