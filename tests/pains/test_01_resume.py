"""A run that goes on begins at step 0, counts steps or epochs twice, or stops without a word."""

from __future__ import annotations

import json

import pytest
import torch
from interrupted_runs import assemble, interrupted
from safetensors.torch import load_file

import main


@pytest.fixture
def path(write_config, dataset_directory):
    """A run of two epochs that draws at random all that a run can."""
    args = {"path": str(dataset_directory), "caption_dropout": 0.5, "shuffle_caption": True}
    lora = {"module": "networks.lora.LoRA", "args": {"rank": 2, "dropout": 0.3}}
    return write_config(
        networks={"lora": lora},
        dataset={"args": args},
        ema={"decay": 0.9},
        lr_scheduler={"name": "cosine"},
        train={"max_train_epochs": 2},
        save={"every_epochs": 1},
    )


def weights(folder, name):
    endings = ("", "-ema")
    return [load_file(folder / f"{name}{ending}.safetensors") for ending in endings]


def test_a_run_stopped_anywhere_ends_with_the_same_bytes(path, tmp_path):
    assert main.main([str(path), "save.name=whole"]) == 0
    steps = len((tmp_path / "output/whole/metrics.jsonl").read_text().splitlines())
    stop = 1 + torch.seed() % (steps - 1)
    trainer = interrupted(path, stop)
    assert main.main([str(path), "train.resume=auto"]) == 0
    wholes, ended = (
        weights(tmp_path / "output" / "whole", "whole"),
        weights(trainer.directory, "run"),
    )
    for whole, own in zip(wholes, ended, strict=True):
        assert all(torch.equal(own[key], tensor) for key, tensor in whole.items()), f"from {stop}"
    curves = [
        [(line["step"], line["epoch"], line["loss"]) for line in map(json.loads, lines)]
        for lines in (
            (tmp_path / "output" / name / "metrics.jsonl").read_text().splitlines()
            for name in ("whole", "run")
        )
    ]
    assert curves[0] == curves[1]  # each step once


def test_steps_and_epochs_are_absolute(path):
    interrupted(path, 3)
    resumed = assemble(path, "train.resume=auto")
    assert (resumed.step, resumed.max_train_steps, resumed.epoch) == (3, 10, 1)


def test_a_finished_run_says_that_nothing_is_left(path, tmp_path, capfd):
    assert main.main([str(path)]) == 0
    before = (tmp_path / "output/run/run.safetensors").stat().st_mtime_ns
    capfd.readouterr()
    assert main.main([str(path), "train.resume=auto"]) == 0
    assert "nothing left to do: " in (said := capfd.readouterr().out)
    assert "2 of 2 epochs" in said
    assert (tmp_path / "output/run/run.safetensors").stat().st_mtime_ns == before
