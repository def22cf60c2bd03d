"""A run can't be paused, saved now or stopped without losing what it has done."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from interrupted_runs import LORA, assemble
from safetensors.torch import load_file

import main
from modules.errors import Interrupted
from modules.state_folder import find_states


@pytest.fixture
def path(write_config):
    return write_config(networks=LORA, train={"max_train_steps": 6}, save={"every_steps": 2})


def at_step(trainer, step, action):
    """Let `action` happen in the middle of a step."""
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == step:
            action()
        return make(group)

    trainer.train_step = train_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_step_and_tells_the_command(path, tmp_path, number):
    assemble(path, "save.name=whole").train()
    trainer = assemble(path)
    at_step(trainer, 3, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert trainer.step == 3
    assert caught.value.status == 128 + number
    command = str(caught.value).partition("go on with: python main.py ")[2]
    assert main.main(command.split()) == 0
    whole, ended = (
        load_file(tmp_path / "output" / name / f"{name}.safetensors") for name in ("whole", "run")
    )
    assert all(torch.equal(ended[key], tensor) for key, tensor in whole.items())


def test_the_second_stops_at_once(path):
    trainer = assemble(path)

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(trainer, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 3
    assert [state.name for state in find_states(trainer.directory)] == ["state-step00000002"]


def test_a_file_asks_for_a_save_and_another_for_the_end(path, monkeypatch):
    """Which works on Windows, and where there is no terminal."""
    monkeypatch.setattr("modules.requests._SECONDS", 0.0)
    trainer = assemble(path)
    at_step(trainer, 1, lambda: (trainer.directory / "save").touch())
    at_step(trainer, 3, lambda: (trainer.directory / "save_quit").touch())
    with pytest.raises(Interrupted):
        trainer.train()
    assert trainer.step == 3
    names = {entry.name for entry in trainer.directory.iterdir()}
    assert names >= {f"run-step0000000{step}.safetensors" for step in (1, 2, 3)}
    assert not names & {"save", "save_quit"}


def test_a_file_is_on_the_disk_before_it_takes_its_name(path, monkeypatch):
    trainer = assemble(path)
    done: list[tuple[str, int]] = []
    sync, rename = os.fsync, Path.replace

    def noted_sync(descriptor):
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def noted_rename(self, target):
        done.append((f"rename to {Path(target).name}", self.stat().st_ino))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    trainer.train()
    ((named, inode),) = [each for each in done if each[0] == "rename to run.safetensors"]
    assert ("sync", inode) in done[: done.index((named, inode))]


def test_a_write_that_fails_leaves_what_was_there(path, monkeypatch):
    trainer = assemble(path, "save.every_steps=3", "save.keep_last=1")
    file = trainer.directory / "run-step00000003.safetensors"
    kept: list[bytes] = []
    save = trainer.networks["lora"].save

    def fail(target, **options):
        save(target, **options)
        if trainer.step > 3:
            kept.append(file.read_bytes())
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.networks["lora"], "save", fail)
    with pytest.raises(Exception, match="No space left"):
        trainer.train()
    assert file.read_bytes() == kept[0]
    assert not list(trainer.directory.glob(".*.tmp*"))
    assert not (trainer.directory / "run.safetensors").exists()
