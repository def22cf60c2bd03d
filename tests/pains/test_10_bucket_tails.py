"""Tails of buckets are trained on: images that fill no batch are neither dropped nor doubled."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
from interrupted_runs import assemble

import main
from modules.buckets import BucketBatchSampler

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
BUCKETS = {(32, 32): 5, (48, 32): 1, (32, 48): 2, (64, 16): 1}  # none fills a batch of 4 evenly


@pytest.fixture
def path(write_config, tmp_path) -> Path:
    data = tiny.save_dataset(tmp_path / "data", BUCKETS)
    return write_config(
        networks=LORA,
        dataset={"args": {"path": str(data)}},
        train={"max_train_epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2},
    )


def coverage(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "coverage.csv").open(encoding="utf-8") as file:
        return {row["image"]: (row["planned"], row["actual"]) for row in csv.DictReader(file)}


def test_every_image_of_uneven_buckets_is_trained_on_once_an_epoch(path, tmp_path):
    assert main.main([str(path)]) == 0
    counts = coverage(tmp_path / "output" / "run")
    assert len(counts) == sum(BUCKETS.values())
    assert set(counts.values()) == {("2", "2")}


def test_each_image_weighs_the_same_however_small_its_batch(path):
    trainer = assemble(path)
    groups = trainer.step_groups()
    for _ in range(trainer.steps_per_epoch):
        group = next(groups)
        images = sum(part.images for part in group)
        assert {part.weight for part in group} == {1 / images}


def test_a_run_that_drops_tails_is_stopped_at_the_end_of_its_epoch(
    path, tmp_path, monkeypatch, capfd
):
    """As other trainers do: only whole batches count."""
    share = BucketBatchSampler.share

    def whole_ones(self, batch):
        images, is_real = share(self, batch)
        return images, is_real and len(batch) == self.batch_size

    monkeypatch.setattr(BucketBatchSampler, "share", whole_ones)
    assert main.main([str(path)]) == 1
    told = capfd.readouterr().err
    assert "coverage: by step 3 5 of 9 images were trained on more or less often than" in told
    assert "0 times, not 1" in told
    counts = coverage(tmp_path / "output" / "run")
    assert list(counts.values()).count(("1", "0")) == 5


def test_fewer_images_than_a_batch_are_a_run(write_config, tmp_path):
    data = tiny.save_dataset(tmp_path / "few", {(32, 32): 2, (48, 32): 1})
    path = write_config(
        networks=LORA,
        dataset={"args": {"path": str(data)}},
        train={"max_train_epochs": 1, "batch_size": 64},
    )
    assert main.main([str(path)]) == 0
    assert set(coverage(tmp_path / "output" / "run").values()) == {("1", "1")}
