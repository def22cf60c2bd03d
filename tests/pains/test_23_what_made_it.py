"""A file does not tell what it was made of, and how."""

from __future__ import annotations

import json

import pytest
from interrupted_runs import LORA

import main
from modules.config import load
from modules.receipt_keys import BASE, CONFIG, DATASET, MANIFEST
from modules.safetensors_header import read_header
from tools.info import main as info


@pytest.fixture
def folder(write_config, tmp_path):
    path = write_config(
        networks=LORA,
        optimizer={"args": {"weight_decay": 0.02}},
        save={"every_steps": 1, "metadata": {"author": "me", "trigger_phrase": "sks cat"}},
        ema={"decay": 0.9},
    )
    assert main.main([str(path), "train.seed=7"]) == 0
    return tmp_path / "output" / "run"


def test_every_file_has_all_of_it(folder, tmp_path):
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 4  # with the average, and of a step on the way
    for file in files:
        found = read_header(file).metadata
        assert found["ss_seed"] == "7"
        assert found["ss_network_dim"] == "2"
        assert found["ss_learning_rate"] == "0.001"
        assert "weight_decay=0.02" in found["ss_optimizer"]
        assert "a red cat" in json.dumps(json.loads(found["ss_tag_frequency"]))
        assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
        assert found["modelspec.author"] == "me"
        assert len(found[BASE]) == len(found[DATASET]) == 64
        assert found[MANIFEST]
        kept = tmp_path / "kept.yaml"
        kept.write_text(found[CONFIG], encoding="utf-8")
        assert load(kept) == load(folder / "config.yaml")


def test_the_command_says_it(folder, capsys):
    assert info([str(folder / "run.safetensors")]) == 0
    said = capsys.readouterr().out
    for part in ("LoRA", "rank", "0.001", "sks cat"):
        assert part in said
    assert info([str(folder / "run.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
