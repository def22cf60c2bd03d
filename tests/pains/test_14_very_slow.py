"""Training is very slow, and nothing says what it waits for."""

from __future__ import annotations

import json

import pytest
from interrupted_runs import LORA

import main
from tools.torch_findings import find_attention

PHASES = ("data", "forward", "backward", "optimizer", "other")


def lines(tmp_path):
    text = (tmp_path / "output" / "run" / "metrics.jsonl").read_text()
    return list(map(json.loads, text.splitlines()))


def test_every_line_has_the_time_of_a_step_by_its_phases(write_config, tmp_path):
    assert main.main([str(write_config(networks=LORA))]) == 0
    for line in lines(tmp_path):
        parts = [line[f"seconds/{phase}"] for phase in PHASES]
        assert all(part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(line["seconds_per_step"], rel=0.01)
        assert line["seconds/forward"] > 0
        assert line["images_per_second"] > 0


def test_waiting_for_data_is_told_with_what_mends_it(write_config, dataset_directory, capfd):
    path = write_config(
        networks=LORA,
        dataset={"module": "plugged_in.Slow", "args": {"path": str(dataset_directory)}},
        train={"max_train_steps": 22, "batch_size": 1},
    )
    assert main.main([str(path), "train.batch_size=1"]) == 0
    said = capfd.readouterr().out
    assert "waits for data in" in said
    assert "dataset.num_workers" in said


def test_a_full_card_is_told(write_config, monkeypatch, capfd):
    """There is no card here: what one of 24 GiB would say."""
    full = {"memory/peak_gib": 21.5, "memory/used_share": 0.97}
    monkeypatch.setattr("modules.step_log.measure_memory", lambda _device: full)
    assert main.main([str(write_config(networks=LORA))]) == 0
    said = capfd.readouterr().out
    assert "the card's memory is 97 % full" in said
    assert "train.gradient_checkpointing" in said


def test_the_doctor_names_the_attention_kernels_that_run():
    (found,) = find_attention()
    assert found.text.startswith("sdpa on ")
    assert "math" in found.text
