"""Saving: names, rotation, no half-written file, no tensor that is not finite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modules.config import load
from modules.errors import RunError
from modules.savers import WeightsSaver, output_names
from modules.trainer import Trainer
from networks.controlnet import ControlNet
from networks.lora import LoRA as LoRANetwork
from networks.pfg import PFG

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


def train(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    trainer.train()
    return trainer


def names(trainer: Trainer) -> set[str]:
    known = {
        "config.yaml",
        "manifest.jsonl",
        "coverage.csv",
        "metrics.jsonl",
        "loss.png",
        "finished.json",
    }
    found = {path.name for path in trainer.directory.iterdir()} - known
    return {name for name in found if not name.startswith("state-")}


def test_saves_are_named_by_step_and_old_ones_are_dropped(write_config):
    path = write_config(networks=LORA, train={"max_train_steps": 5})
    all_kept = train(path, "save.every_steps=2")
    steps = {"run-step00000002.safetensors", "run-step00000004.safetensors"}
    assert names(all_kept) == {*steps, "run.safetensors"}
    rotated = train(path, "save.every_steps=1", "save.keep_last=2")
    last_two = {"run-step00000003.safetensors", "run-step00000004.safetensors"}
    assert names(rotated) == {*last_two, "run.safetensors"}


def test_epochs_are_counted_in_steps(write_config):
    path = write_config(networks=LORA, train={"max_train_epochs": 3, "batch_size": 4})
    trainer = train(path, "save.every_epochs=1")
    assert trainer.steps_per_epoch == 3
    saved = {"run-step00000003.safetensors", "run-step00000006.safetensors", "run.safetensors"}
    assert names(trainer) == saved


def test_the_plan_names_what_will_be_written():
    lora, controlnet, pfg = LoRANetwork(), ControlNet(), PFG()
    assert output_names("cat", {"lora": lora}, trains_base=False) == ["cat.safetensors"]
    several = {"a": lora, "b": controlnet, "c": pfg}
    assert output_names("cat", several, trains_base=True) == [
        "cat-a.safetensors",
        "cat-b/",
        "cat-c.safetensors",
        "cat-c.pt",
        "cat/",
    ]


def test_several_networks_have_files_of_their_own(write_config):
    networks = {"style": LORA["lora"], "face": {**LORA["lora"], "args": {"rank": 3}}}
    trainer = train(write_config(networks=networks))
    assert names(trainer) == {"run-style.safetensors", "run-face.safetensors"}
    rank = {
        name: next(
            tensor.shape[0]
            for key, tensor in load_file(trainer.directory / f"run-{name}.safetensors").items()
            if key.endswith("lora_down.weight")
        )
        for name in networks
    }
    assert rank == {"style": 2, "face": 3}


@pytest.mark.parametrize(("dtype", "stored"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_files_have_the_precision_asked_for(write_config, dtype, stored):
    trainer = train(write_config(networks=LORA, save={"dtype": dtype}))
    with safe_open(trainer.directory / "run.safetensors", framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {stored}  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["ss_output_name"] == "run"
    assert metadata["ss_steps"] == "2"
    assert {p.dtype for p in trainer.networks["lora"].parameters()} == {torch.float32}


def test_what_is_not_finite_is_not_saved(write_config):
    trainer = Trainer.from_config(load(write_config(networks=LORA)))
    with torch.no_grad():
        next(trainer.networks["lora"].parameters())[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"1 of \d+ trained tensors are not finite, first lora\."):
        trainer.saver.save_if_due(trainer, last=True)
    assert names(trainer) == set()


def test_a_save_that_fails_leaves_the_last_one(write_config, monkeypatch):
    trainer = Trainer.from_config(load(write_config(networks=LORA)))
    trainer.saver.save_if_due(trainer, last=True)
    path = trainer.directory / "run.safetensors"
    before = path.read_bytes()

    def fail(target, **_options):
        target.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer.networks["lora"], "save", fail)
    with pytest.raises(RunError, match="No space left"):
        trainer.saver.save_if_due(trainer, last=True)
    assert path.read_bytes() == before
    assert names(trainer) == {"run.safetensors"}


def test_a_base_that_fails_to_save_leaves_the_last_one(write_config, monkeypatch):
    trainer = Trainer.from_config(load(write_config(model={"trainable": ["unet"]})))
    trainer.saver.save_if_due(trainer, last=True)

    def fail(directory, **_options):
        (directory / "unet").mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", fail)
    with pytest.raises(RunError, match="No space left"):
        trainer.saver.save_if_due(trainer, last=True)
    assert (trainer.directory / "run" / "unet" / "config.json").is_file()


def test_a_saved_base_is_what_was_trained_and_loads(write_config):
    trainer = train(write_config(model={"trainable": ["unet", "text_encoders"]}))
    saved = trainer.directory / "run"
    again = Trainer.from_config(
        load(write_config("again", networks=LORA, model={"path": str(saved)}))
    )
    for a, b in zip(
        trainer.model.components().values(), again.model.components().values(), strict=True
    ):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_nothing_is_due_without_an_interval():
    class Run:
        step, steps_per_epoch, asks_for_save = 10, 5, False

    WeightsSaver().save_if_due(Run(), last=False)  # would fail on Run's missing networks


def test_a_network_and_the_base_do_not_share_a_name(write_config):
    trainer = train(write_config(networks=LORA), "model.trainable=[unet.up_blocks]")
    assert names(trainer) == {"run", "run-lora.safetensors"}
    assert output_names("a", {"net": ControlNet()}, trains_base=True) == ["a-net/", "a/"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("format", ["diffusers", "single_file"])
def test_others_may_read_what_is_saved(write_config, model_directory, tmp_path, format):
    """Programs that load it may run as another user; safetensors writes for the owner alone."""
    config = load(
        write_config(
            model={"path": str(model_directory), "trainable": ["unet.mid_block"]},
            networks=LORA,
            save={"format": format, "directory": str(tmp_path)},
        )
    )
    before = os.umask(0o022)
    try:
        trainer = Trainer.from_config(config)
        trainer.saver.save_if_due(trainer, last=True)
    finally:
        os.umask(before)
    files = [file for file in trainer.directory.rglob("*.safetensors") if file.is_file()]
    assert len(files) == (4 if format == "diffusers" else 2)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
