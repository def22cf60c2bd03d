"""How many steps a run has is said before it, and is what was said."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

import main

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


@pytest.fixture
def path(write_config) -> Path:
    """Eight images in buckets of five and three."""
    return write_config(networks=LORA, train={"max_train_epochs": 2, "batch_size": 2})


def planned(path: Path, capfd, *overrides: str) -> str:
    """The line of steps that --check prints."""
    assert main.main([str(path), *overrides, "--check"]) == 0
    (line,) = re.findall(r"^steps +(.*)$", capfd.readouterr().out, re.MULTILINE)
    return line


def steps(path: Path, tmp_path: Path, *overrides: str) -> int:
    """Optimizer steps that a run makes."""
    assert main.main([str(path), *overrides, "save.name=counted"]) == 0
    newest = max((tmp_path / "output").glob("counted*"), key=lambda folder: folder.stat().st_mtime)
    lines = (newest / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads((newest / "finished.json").read_text())["steps"] == len(lines)
    return len(lines)


@pytest.mark.parametrize(
    ("overrides", "line", "count"),
    [
        ((), "8 images -> 5 batches of up to 2 an epoch -> 5 optimizer steps an epoch, 10 in", 10),
        (
            ("dataset.args.repeats=1",),
            "8 images -> 5 batches of up to 2 an epoch -> 5 optimizer steps an epoch, 10 in",
            10,
        ),
        (
            ("dataset.args.repeats=3",),
            "8 images x 3 = 24 -> 13 batches of up to 2 an epoch -> 13 optimizer steps an epoch, "
            "26 in",
            26,
        ),
        (
            ("dataset.args.repeats=3", "train.gradient_accumulation_steps=4"),
            "8 images x 3 = 24 -> 13 batches of up to 2 an epoch, 4 batches a step -> 4 optimizer "
            "steps an epoch, 8 in",
            8,
        ),
        (
            ("train.batch_size=4", "train.minibatch_repeat=2"),
            "8 images -> 5 batches of up to 4 an epoch (each image 2 times) -> 5 optimizer steps",
            10,
        ),
        (
            ("train.max_train_epochs=null", "train.max_train_steps=7"),
            "8 images -> 5 batches of up to 2 an epoch -> 5 optimizer steps an epoch, 7 in all "
            "(1.4 epochs)",
            7,
        ),
    ],
)
def test_check_tells_images_times_repeats_batches_and_updates(
    path, overrides, line, count, tmp_path, capfd
):
    assert planned(path, capfd, *overrides).startswith(line)
    assert steps(path, tmp_path, *overrides) == count


def test_steps_beside_epochs_are_refused_and_neither_wins(path, capfd):
    assert main.main([str(path), "train.max_train_steps=7"]) == 2
    told = capfd.readouterr().err
    assert (
        "train.max_train_steps (command line): is given beside max_train_epochs; keep one" in told
    )


def test_a_run_without_a_length_is_refused(path, capfd):
    assert main.main([str(path), "train.max_train_epochs=null"]) == 2
    told = capfd.readouterr().err
    assert ": has no length; give max_train_epochs or max_train_steps" in told


def test_repeats_of_1_are_once_an_epoch_and_of_less_an_error(path, tmp_path, capfd):
    assert main.main([str(path), "dataset.args.repeats=1"]) == 0
    with (tmp_path / "output" / "run" / "coverage.csv").open(encoding="utf-8") as file:
        assert {row["actual"] for row in csv.DictReader(file)} == {"2"}
    assert main.main([str(path), "dataset.args.repeats=0"]) == 2
    assert "repeats: 0 is neither a number from 1 on, which is once" in capfd.readouterr().err


@pytest.mark.parametrize("count", [1, 3, 50])
def test_class_images_never_change_the_count(write_config, tmp_path, capfd, count):
    """However many there are: each of the dataset's batches has one of them beside it."""
    import tiny

    data = tiny.save_dataset(tmp_path / "class", {(32, 32): count})
    train = {"max_train_epochs": 2, "batch_size": 2}
    path = write_config(networks=LORA, prior={"args": {"path": str(data)}}, train=train)
    line = "8 images -> 5 batches of up to 2 an epoch -> 5 optimizer steps an epoch, 10 in all"
    assert planned(path, capfd).startswith(line)
    assert steps(path, tmp_path) == 10
