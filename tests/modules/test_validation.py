"""Runs with held-out images: the curve, the best weights, overfitting, early stop."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

import main
from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "dropout": 0.1}}}
VALIDATION = {"split": 0.4, "every_steps": 1}
OVERFITTING = {
    "networks": {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}},
    "train": {"max_train_steps": 40, "learning_rate": 0.1},
    "validation": {**VALIDATION, "patience": 3},
}
"""A learning rate so high that the loss soon rises."""


def assemble(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def train(path: Path, *overrides: str) -> Trainer:
    trainer = assemble(path, *overrides)
    trainer.train()
    return trainer


def records(directory: Path) -> list[dict[str, float]]:
    """Lines of the metrics that validation has written."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "validation/loss" in line]


def curve(trainer: Trainer) -> dict[int, float]:
    return {int(r["step"]): r["validation/loss"] for r in records(trainer.directory)}


def test_the_curve_is_in_the_metrics_and_the_picture(write_config):
    path = write_config(
        networks=LORA, train={"max_train_steps": 5}, validation={"split": 0.4, "every_steps": 2}
    )
    trainer = train(path)
    found = records(trainer.directory)
    assert [line["step"] for line in found] == [0, 2, 4, 5]
    labels = [f"validation/loss_t{timestep}" for timestep in (125, 375, 625, 875)]
    for line in found:
        mean = sum(line[label] for label in labels) / 4
        assert line["validation/loss"] == pytest.approx(mean)
    assert found[-1]["validation/loss"] == trainer.validation.measure(trainer).mean().item()
    with Image.open(trainer.directory / "loss.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (colours == [0xD9, 0x5F, 0x0E]).all(1).sum() > 100


def test_each_epoch_is_the_default(write_config):
    path = write_config(
        networks=LORA, train={"max_train_epochs": 2, "max_train_steps": None},
        validation={"split": 0.4},
    )  # fmt: skip
    trainer = train(path)
    steps = trainer.steps_per_epoch
    assert list(curve(trainer)) == [0, steps, 2 * steps]


def test_measuring_changes_nothing_of_training(write_config, dataset_directory, tmp_path):
    """Weights are equal bit by bit with a dataset of its own that is measured, and without."""
    other = tiny.save_dataset(tmp_path / "other", {(32, 32): 3}, seed=5)
    own = {"args": {"path": str(other)}, "every_steps": 1}
    args = {"path": str(dataset_directory), "caption_dropout": 0.5}
    sections = {"networks": LORA, "dataset": {"args": args}, "train": {"max_train_steps": 4}}
    with_one = train(write_config("with_one", validation=own, **sections))
    without = train(write_config("without", **sections))
    assert list(curve(with_one)) == [0, 1, 2, 3, 4]
    assert with_one.validation.held_out.summary() == "3 images of a dataset of their own"
    ours = load_file(with_one.directory / "with_one.safetensors")
    theirs = load_file(without.directory / "without.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(module.training for module in with_one.networks["lora"].modules())


def test_the_best_weights_are_kept_and_overfitting_is_told(write_config, caplog):
    path = write_config(**OVERFITTING, save={"every_steps": 1})
    with caplog.at_level(logging.INFO):
        trainer = train(path, "validation.keep_best=true", "train.max_train_steps=8")
    found = curve(trainer)
    best = min(list(found)[1:], key=found.__getitem__)
    assert 1 < best < 8
    kept = load_file(trainer.directory / "run-best.safetensors")
    saved = load_file(trainer.directory / f"run-step{best:08d}.safetensors")
    assert all(torch.equal(kept[key], saved[key]) for key in saved)
    last = load_file(trainer.directory / "run.safetensors")
    assert any(not torch.equal(kept[key], last[key]) for key in last)
    assert f"at step {best}, the lowest so far" in caplog.text
    told = [r.getMessage() for r in caplog.records if "overfits" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(
        f"validation: the loss has not fallen below that of step {best} in 3 measurements "
        f"({found[best]:.4f} then, {found[best + 3]:.4f} now): the run overfits; the "
        "weights of then are kept as the best"
    )


def test_the_run_ends_early_as_a_finished_one(write_config, capfd):
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 1}
    path = write_config(**OVERFITTING, sample=sample)
    assert main.main([str(path), "validation.stop_early=true"]) == 0
    folder = path.parent / "output" / "run"
    found = {line["step"]: line["validation/loss"] for line in records(folder)}
    end = max(found)
    best = min(list(found)[1:], key=found.__getitem__)
    assert end == best + 3 < 40
    assert json.loads((folder / "finished.json").read_text()) == {"steps": end}
    assert (folder / "run.safetensors").is_file()
    assert (folder / f"state-step{end:08d}").is_dir()
    assert (folder / "before_after.png").is_file()
    assert (folder / "samples" / f"step{end:08d}.png").is_file()
    told = capfd.readouterr()
    assert "the run overfits; it ends here" in told.out + told.err
    before = (folder / "metrics.jsonl").read_bytes()
    assert main.main([str(path), "validation.stop_early=true", "train.resume=auto"]) == 0
    told = capfd.readouterr()
    assert "nothing left to do" in told.out + told.err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_average_is_measured_where_it_is_sampled(write_config):
    path = write_config(
        networks=LORA,
        ema={"decay": 0.5},
        train={"max_train_steps": 3, "learning_rate": 0.01},
        validation={**VALIDATION, "keep_best": True},
    )
    averaged = train(path)
    trained = train(path, "ema.sample=false", "save.name=trained")
    for trainer, version in ((averaged, "-ema"), (trained, "")):
        found = curve(trainer)
        assert min(found, key=found.__getitem__) == 3
        name = trainer.name
        again = assemble(path, f"save.name={name}-again", "ema=null")
        again.networks["lora"].load(trainer.directory / f"{name}{version}.safetensors")
        assert again.validation.measure(again).mean().item() == pytest.approx(found[3], rel=1e-6)
        best = load_file(trainer.directory / f"{name}-ema-best.safetensors")
        last = load_file(trainer.directory / f"{name}-ema.safetensors")
        assert all(torch.equal(best[key], last[key]) for key in last)
    assert curve(averaged)[3] != curve(trained)[3]


def test_a_measurement_that_fails_costs_a_warning(
    write_config, dataset_directory, tmp_path, caplog
):
    copy = shutil.copytree(dataset_directory, tmp_path / "data")
    path = write_config(dataset={"args": {"path": str(copy)}}, networks=LORA, validation=VALIDATION)
    trainer = assemble(path)
    dataset = trainer.validation.held_out.dataset
    name = dataset.names[trainer.validation.held_out.measured[0]]
    (copy / "latents" / f"{name}.npy").unlink()
    trainer.train()
    assert (trainer.directory / "run.safetensors").is_file()
    assert records(trainer.directory) == []
    assert f"latents/{name}.npy" in caplog.text
    assert "training goes on" in caplog.text
    assert trainer.validation.since_best == 0


def test_the_best_that_cannot_be_written_costs_a_warning(write_config, caplog, monkeypatch):
    validation = {**VALIDATION, "keep_best": True}
    trainer = assemble(write_config(networks=LORA, validation=validation))
    (trainer.directory / "run-best.safetensors").mkdir()  # nothing can take its place
    trainer.train()
    assert (trainer.directory / "run.safetensors").is_file()
    assert "validation.keep_best: step 1" in caplog.text


def test_a_saver_that_cannot_save_the_best_is_refused(write_config):
    save = {"module": "plugged_in.OwnSaver"}
    path = write_config(networks=LORA, save=save, validation={**VALIDATION, "keep_best": True})
    with pytest.raises(ConfigError, match=r"validation.keep_best: .*OwnSaver has no save\("):
        assemble(path)


def test_a_vae_is_measured_by_its_reconstructions(write_config, dataset_directory):
    path = write_config(
        model={"trainable": ["vae.decoder"]},
        dataset={
            "module": "modules.dataset.ImageDataset",
            "args": {"path": str(dataset_directory), "prompt": ""},
        },
        objective={"module": "modules.reconstruction.Reconstruction"},
        train={"max_train_steps": 4, "learning_rate": 1e-3},
        validation={**VALIDATION, "keep_best": True},
    )
    trainer = train(path)
    found = records(trainer.directory)
    assert [sorted(line) for line in found] == [["epoch", "step", "validation/loss"]] * 5
    losses = [line["validation/loss"] for line in found]
    assert losses[-1] < losses[0]
    assert (trainer.directory / "run-best" / "config.json").is_file()
    one = trainer.validation.measure(trainer)
    assert torch.equal(trainer.validation.measure(trainer), one)
