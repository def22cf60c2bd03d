"""Steps whose loss or gradient is not finite: they change nothing, and are found and shown."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from modules.config import load
from modules.errors import RunError
from modules.trainer import Trainer
from tools.replay import main, replay

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
OPTIMIZERS = {
    "fused": {"module": "torch.optim.AdamW", "args": {"fused": True}},
    "foreach": {"module": "torch.optim.AdamW", "args": {"fused": False}},
    "sgd": {"module": "torch.optim.SGD", "args": {"momentum": 0.9}},
}


def assemble(write_config, **sections) -> Trainer:
    sections = {"networks": LORA, "objective": {"module": "plugged_in.Poisoned"}, **sections}
    trainer = Trainer.from_config(load(write_config(**sections)))
    assert trainer is not None
    return trainer


def snapshot(trainer: Trainer) -> list[torch.Tensor]:
    optimizer = trainer.optimizer.optimizer
    held = [p.detach().clone() for group in trainer.groups for p in group.parameters]
    for state in optimizer.state.values():
        held += [value.clone() for value in state.values() if isinstance(value, torch.Tensor)]
    return held


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_poisoned_step_changes_nothing(write_config, monkeypatch, optimizer, max_grad_norm):
    monkeypatch.setenv("POISONED", "2")
    trainer = assemble(
        write_config, optimizer=OPTIMIZERS[optimizer], train={"max_grad_norm": max_grad_norm}
    )
    groups = trainer.step_groups()
    seen = []
    for _ in range(3):
        trainer.train_step(next(groups))
        seen.append(snapshot(trainer))
    assert all(torch.isfinite(tensor).all() for tensor in seen[2])
    pairs = [zip(seen[n], seen[n + 1], strict=True) for n in range(2)]
    same = [all(torch.equal(a, b) for a, b in pair) for pair in pairs]
    assert same == [True, False]


def test_no_value_is_asked_of_the_device_where_the_optimizer_can_skip(write_config, monkeypatch):
    trainer = assemble(write_config, optimizer=OPTIMIZERS["fused"])
    group = next(trainer.step_groups())
    trainer.optimizer.zero_grad()

    def refuse(_tensor):
        raise AssertionError("waits for the device")

    trainer._loss(group[0].batch).backward()
    monkeypatch.setattr(torch.Tensor, "__bool__", refuse)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    bad = torch.tensor(float("nan"))
    trainer.guard.step(trainer.optimizer.step, loss=bad, norm=bad)


def test_a_line_says_how_many_steps_were_left_out(write_config, monkeypatch, caplog):
    monkeypatch.setenv("POISONED", "2 3")
    trainer = assemble(write_config, train={"max_train_steps": 4, "log_every": 4})
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "2 step(s) since the last line had a loss or gradient that is not finite" in caplog.text
    last = json.loads((trainer.directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert last["loss"] > 0


def test_too_many_in_a_row_end_the_run_with_a_bundle(write_config, capsys):
    trainer = assemble(
        write_config, train={"max_nonfinite_steps": 3, "max_train_steps": 9, "log_every": 1}
    )
    with pytest.raises(RunError) as caught:
        trainer.train()
    bundle = trainer.directory / "nan_step_00000003"
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    names = [name for part in trainer.last_group for name in part.batch.names]
    assert report["images"] == names
    assert len(report["timesteps"]) == len(names)
    assert report["module"] == "unet.conv_in"
    assert report["seed"] == 0
    for part in ("step 3:", names[0], "unet.conv_in", str(report["timesteps"][0]), str(bundle)):
        assert part in str(caught.value)
    assert main([str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "unet.conv_in is the first that is not finite" in shown
    assert str(report["timesteps"][0]) in shown


def test_a_poisoned_weight_of_the_base_is_found(write_config, caplog):
    trainer = assemble(
        write_config,
        objective={},
        train={"max_nonfinite_steps": 1},
    )
    layer = trainer.model.denoiser.mid_block.resnets[0].conv1
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(RunError, match=r"unet\.mid_block\.resnets\.0\.conv1"):
        trainer.train()


def test_a_directory_that_is_no_bundle(tmp_path):
    with pytest.raises(ValueError, match="is no bundle of a step"):
        replay(tmp_path)
