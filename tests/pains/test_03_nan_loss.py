"""The loss is NaN for hours, and what is saved at the end is ruined."""

from __future__ import annotations

import json

import pytest
import torch
from interrupted_runs import LORA, assemble
from safetensors.torch import load_file

import main
from modules.errors import RunError


@pytest.fixture
def path(write_config):
    return write_config(
        networks=LORA,
        objective={"module": "plugged_in.Poisoned"},
        train={"max_train_steps": 6, "max_nonfinite_steps": 3},
    )


def test_a_poisoned_step_leaves_the_weights_alone(path, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("POISONED", "2 4")
    assert main.main([str(path), "train.log_every=6"]) == 0
    saved = load_file(tmp_path / "output/run/run.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert (
        "2 step(s) since the last line had a loss or gradient that is not" in capfd.readouterr().out
    )


def test_too_many_end_the_run_and_say_where_it_comes_from(path, tmp_path, capsys):
    assert main.main([str(path)]) == 1
    folder, said = tmp_path / "output" / "run", capsys.readouterr().err
    report = json.loads((folder / "nan_step_00000003" / "report.json").read_text())
    assert report["module"] == "unet.conv_in"
    found = (*report["images"], *map(str, report["timesteps"]), "seed 0", report["module"])
    assert all(part in said for part in found)
    assert not list(folder.glob("*.safetensors"))


def test_no_tensor_that_is_not_finite_is_saved(path, monkeypatch):
    monkeypatch.setenv("POISONED", "")
    trainer = assemble(path, "train.max_train_steps=1")
    (up,) = [p for n, p in trainer.networks["lora"].named_parameters() if "lora_up" in n][:1]
    with torch.no_grad():
        up[0, 0] = torch.nan
    with pytest.raises(
        RunError, match=r"trained tensors are not finite, first lora\..*nothing was"
    ):
        trainer.saver.save(trainer, suffix="")
    assert not list(trainer.directory.glob("*.safetensors"))
