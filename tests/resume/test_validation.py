"""What is known of held-out images survives whatever ends a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from modules.config import load
from modules.errors import ConfigError, Interrupted
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "dropout": 0.1}}}
SECTIONS = {
    "networks": LORA,
    "train": {"max_train_steps": 40, "learning_rate": 0.1, "log_every": 3},
    "validation": {
        "split": 0.4,
        "every_steps": 1,
        "patience": 3,
        "keep_best": True,
        "stop_early": True,
    },
}
"""A learning rate so high that the loss soon rises."""


def assemble(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def interrupt(trainer: Trainer, step: int) -> None:
    """Let a run be stopped after a step."""
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.train()


def metrics(folder: Path) -> list[dict[str, float]]:
    """What was logged, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def assert_same(one: Path, two: Path) -> None:
    """Check that two runs have left the same weights, best weights, curves and end."""
    for ending in ("", "-best"):
        first = load_file(one / f"{one.name}{ending}.safetensors")
        second = load_file(two / f"{two.name}{ending}.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), ending
    assert metrics(one) == metrics(two)
    assert (one / "finished.json").read_text() == (two / "finished.json").read_text()


@pytest.mark.parametrize("steps", [[1], [2, 4], [3, 5]], ids=str)
def test_an_interrupted_run_ends_early_at_the_same_step_with_the_same_best(write_config, steps):
    path = write_config(**SECTIONS)
    whole = assemble(path, "save.name=whole")
    whole.train()
    assert whole.step > max(steps)
    trainer = assemble(path)
    for step in steps:
        interrupt(trainer, step)
        trainer = assemble(path, "train.resume=auto")
        assert trainer.step == step
        assert trainer.validation.measured_at == step
    trainer.train()
    assert_same(whole.directory, trainer.directory)


def test_a_run_that_ended_before_it_could_say_so(write_config):
    """The state of its last step is there, and it was killed while it sampled."""
    path = write_config(**SECTIONS)
    whole = assemble(path, "save.name=whole")
    whole.train()
    trainer = assemble(path)
    trainer.train()
    (trainer.directory / "finished.json").unlink()
    again = assemble(path, "train.resume=auto")
    assert again.step == trainer.step
    again.train()
    assert again.step == trainer.step
    assert_same(whole.directory, again.directory)


def test_a_run_that_was_stopped_early_can_go_on(write_config, capfd):
    path = write_config(**SECTIONS)
    first = assemble(path)
    first.train()
    with pytest.raises(ConfigError, match=r"validation\.stop_early: True then, False now"):
        assemble(path, "train.resume=auto", "validation.stop_early=false")
    given = ["train.resume=auto", "validation.stop_early=false", "train.max_train_steps=40"]
    given.append("train.accept_changes=[validation.stop_early]")
    assert main.main([str(path), *given]) == 0
    folder = first.directory
    assert json.loads((folder / "finished.json").read_text()) == {"steps": 40}
    steps = [line["step"] for line in metrics(folder) if "validation/loss" in line]
    assert steps == list(range(41))


def test_what_is_measured_may_not_change_unseen(write_config, caplog):
    path = write_config(**SECTIONS)
    interrupt(assemble(path), 2)
    for change in ("validation.split=0.6", "validation.num_timesteps=2", "validation.seed=1"):
        key = change.partition("=")[0]
        with pytest.raises(ConfigError, match=f"{key}: .* then"):
            assemble(path, "train.resume=auto", change)
    accepted = "train.accept_changes=[validation.num_timesteps]"
    trainer = assemble(path, "train.resume=auto", "validation.num_timesteps=2", accepted)
    assert "other images or timesteps than before" in caplog.text
    assert trainer.validation.best_step is None
    for change in ("validation.every_steps=5", "validation.keep_best=false"):
        assert assemble(path, "train.resume=auto", change).validation.best_step is not None
