"""Every image of a run's dataset as often as planned, or an error that names it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from interrupted_runs import assemble, interrupted

from modules.buckets import BucketBatchSampler
from modules.coverage import Plan
from modules.errors import RunError
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
POISONED = {"module": "plugged_in.Poisoned"}


def read(trainer: Trainer) -> dict[str, tuple[int, ...]]:
    """Planned, actual and lost exposures by image, of a run's file."""
    with (trainer.directory / "coverage.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "planned", "actual", "not_finite"]
    return {name: tuple(map(int, counts)) for name, *counts in rows}


def train(path: Path, *overrides: str) -> Trainer:
    trainer = assemble(path, *overrides)
    trainer.train()
    return trainer


@pytest.fixture
def path(write_config) -> Path:
    return write_config(networks=LORA, train={"max_train_epochs": 3, "batch_size": 2})


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_an_epoch(path, accumulation, workers):
    trainer = train(
        path,
        f"train.gradient_accumulation_steps={accumulation}",
        f"dataset.num_workers={workers}",
    )
    assert set(read(trainer).values()) == {(3, 3, 0)}
    assert len(read(trainer)) == 8


def test_repeats_held_out_images_and_minibatch_repeats(path):
    trainer = train(
        path,
        "dataset.args.repeats=5",
        "train.minibatch_repeat=2",
        "train.batch_size=4",
        "validation.split=0.4",
    )
    held_out = trainer.validation.held_out
    names = held_out.dataset.names
    measured = {names[number] for number in held_out.measured}
    assert 0 < len(measured) < 8
    expected = {name: (0, 0, 0) if name in measured else (30, 30, 0) for name in names}
    assert read(trainer) == expected


def test_several_datasets_each_with_its_repeats(write_config, tmp_path):
    for name in ("one", "two"):
        tiny.save_dataset(tmp_path / name, {(32, 32): 3})
    entries = [
        {"path": str(tmp_path / "one"), "repeats": 4, "loss_weight": 0.5},
        {"path": str(tmp_path / "two")},
    ]
    dataset = {"module": "modules.mixture.Mixture", "args": {"datasets": entries}}
    trainer = train(
        write_config(networks=LORA, dataset=dataset, train={"max_train_epochs": 2, "batch_size": 4})
    )
    counts = read(trainer)
    assert {v for k, v in counts.items() if k.startswith("one/")} == {(8, 8, 0)}
    assert {v for k, v in counts.items() if k.startswith("two/")} == {(2, 2, 0)}
    assert len(counts) == 6


def test_class_images_are_not_counted(write_config, dataset_directory):
    prior = {"args": {"path": str(dataset_directory)}}
    trainer = train(write_config(networks=LORA, prior=prior, train={"max_train_epochs": 1}))
    assert set(read(trainer).values()) == {(1, 1, 0)}


def test_images_of_a_dataset_without_names_are_numbered(write_config, dataset_directory):
    dataset = {"module": "plugged_in.Nameless", "args": {"path": str(dataset_directory)}}
    trainer = train(write_config(networks=LORA, dataset=dataset, train={"max_train_epochs": 2}))
    assert read(trainer) == {str(number): (2, 2, 0) for number in range(5)}


def test_a_run_that_ends_within_an_epoch_is_held_against_what_was_planned_up_to_there(path):
    trainer = train(path, "train.max_train_epochs=null", "train.max_train_steps=7")
    counts = read(trainer)
    assert {planned for planned, _, _ in counts.values()} == {1, 2}
    assert all(planned == actual for planned, actual, _ in counts.values())
    assert sum(actual for _, actual, _ in counts.values()) in (11, 12)  # 5 steps are an epoch


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_resumed_run_has_counted_all_of_it(path, step):
    whole = train(path, "save.name=whole")
    stopped = interrupted(path, step)
    counts = read(stopped).values()
    assert sum(actual for _, actual, _ in counts) == sum(planned for planned, _, _ in counts)
    resumed = train(path, "train.resume=auto")
    assert resumed.directory == stopped.directory
    assert read(resumed) == read(whole)


def test_a_run_resumed_with_other_images_counts_from_there(path):
    interrupted(path, 3)
    resumed = train(
        path,
        "train.resume=auto",
        "dataset.args.repeats=2",
        "train.accept_changes=[dataset,max_train_steps]",
    )
    counts = read(resumed)
    left = resumed.max_train_steps - 3
    assert sum(actual for _, actual, _ in counts.values()) == pytest.approx(2 * left, abs=2)
    assert all(planned == actual for planned, actual, _ in counts.values())


def test_steps_that_were_not_finite_are_told(path, monkeypatch):
    monkeypatch.setenv("POISONED", "2 9")
    trainer = train(path, f"objective.module={POISONED['module']}")
    counts = read(trainer)
    assert {(planned, actual) for planned, actual, _ in counts.values()} == {(3, 3)}
    assert sum(lost for *_, lost in counts.values()) in (2, 3, 4)


def test_a_resumed_run_remembers_what_was_not_finite(path, monkeypatch):
    monkeypatch.setenv("POISONED", "2")
    override = f"objective.module={POISONED['module']}"
    whole = train(path, override, "save.name=whole")
    interrupted(path, 3, override)
    monkeypatch.setenv("POISONED", "none")
    assert read(train(path, override, "train.resume=auto")) == read(whole)


def test_a_loader_that_drops_images_is_an_error_that_names_them(path, monkeypatch):
    """The tails of buckets, which other trainers leave out."""
    share = BucketBatchSampler.share

    def whole_ones(self, batch: Sequence[int]) -> tuple[list[int], bool]:
        images, is_real = share(self, batch)
        return images, is_real and len(batch) == self.batch_size

    monkeypatch.setattr(BucketBatchSampler, "share", whole_ones)
    with pytest.raises(RunError) as caught:
        train(path)
    message = str(caught.value)
    assert message.startswith("coverage: by step 5 2 of 8 images were trained on more or less")
    assert ": image001 0 times, not 1, image006 0 times" in message
    assert " 0 times, not 1" in message


def test_a_plan_counts_steps_as_the_sampler_draws_them():
    sampler = BucketBatchSampler([[0, 1, 2, 10, 11], [3, 4]], batch_size=2, seed=3)
    plan = Plan(sampler, images=10, steps_per_epoch=2, batches=2)
    assert plan.between(0, 2).tolist() == [2, 2, 1, 1, 1, 0, 0, 0, 0, 0]
    assert plan.between(2, 4).tolist() == plan.between(0, 2).tolist()
    halves = plan.between(0, 1) + plan.between(1, 2)
    assert halves.tolist() == plan.between(0, 2).tolist()
    assert plan.of_steps([2, 3]).tolist() == plan.between(1, 3).tolist()
    drawn = [index % 10 for batch in list(sampler)[:2] for index in batch]
    assert [drawn.count(number) for number in range(10)] == plan.between(0, 1).tolist()
