"""The learning rate is wrong after a resume, or 0 for ever once a run is made longer."""

from __future__ import annotations

import json

import pytest
from interrupted_runs import LORA, assemble, interrupted

import main

ACCEPTED = ("train.max_train_steps=9", "train.accept_changes=[train.max_train_steps]")


@pytest.fixture
def path(write_config):
    return write_config(
        networks=LORA,
        lr_scheduler={"name": "cosine", "warmup_steps": 2},
        train={"max_train_steps": 6},
    )


def rates(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["learning_rate/lora.unet"] for line in map(json.loads, lines)]


def test_rates_after_a_resume_are_those_of_the_whole_run(path, tmp_path):
    assert main.main([str(path), "save.name=whole"]) == 0
    interrupted(path, 3)
    assert main.main([str(path), "train.resume=auto"]) == 0
    whole = rates(tmp_path / "output" / "whole")
    assert rates(tmp_path / "output" / "run") == whole
    assert len(set(whole)) > 4


def test_another_number_of_steps_is_an_error_with_both_and_a_way_on(path, capsys):
    interrupted(path, 3)
    assert main.main([str(path), "train.resume=auto", ACCEPTED[0]]) == 2
    said = capsys.readouterr().err
    assert "train.max_train_steps: 6 then, 9 now" in said
    assert "train.accept_changes=[train.max_train_steps]" in said


@pytest.mark.parametrize("stop", [3, 6])
def test_a_longer_run_has_the_rates_of_its_new_length(path, tmp_path, stop):
    assert main.main([str(path), "save.name=whole", ACCEPTED[0]]) == 0
    if stop == 6:  # finished, at a rate of 0
        assemble(path).train()
    else:
        interrupted(path, stop)
    assert main.main([str(path), "train.resume=auto", *ACCEPTED]) == 0
    whole, longer = (rates(tmp_path / "output" / name) for name in ("whole", "run"))
    assert longer[stop:] == whole[stop:]
    assert min(longer[stop:-1]) > 0
