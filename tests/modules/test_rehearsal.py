"""What a rehearsal tries and tells, and that a run after it ends as one without, bit by bit."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from interrupted_runs import assemble, interrupted
from PIL import Image
from safetensors.torch import load_file

from modules.errors import RunError
from modules.rehearsal import duration
from modules.state_folder import find_states
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["unet"]}}}
SAMPLE = {"prompts": ["a cat", "a dog"], "width": 32, "height": 48, "num_inference_steps": 2}
FULL = {"model": {"trainable": ["unet.up_blocks", "text_encoders"]}}
RUNS: dict[str, dict[str, Any]] = {
    "lora": {"networks": LORA, "sample": SAMPLE, "loggers": {"tensorboard": None}},
    "full": FULL,
    "single file": {**FULL, "save": {"format": "single_file"}},
    "accumulation": {"networks": LORA, "train": {"gradient_accumulation_steps": 3}},
    "ema": {"networks": LORA, "ema": {"decay": 0.9, "save": "beside"}, "sample": SAMPLE},
    "augmentation": {
        "networks": LORA,
        "dataset": {
            "module": "modules.dataset.ImageDataset",
            "num_workers": 2,
            "args": {"flip": 0.5, "crop_jitter": 0.2, "caption_dropout": 0.3},
        },
    },
    "prior": {"networks": LORA, "prior": {}},
    "norm": {"networks": {"lora": {**LORA["lora"], "args": {"rank": 2, "max_norm": 0.01}}}},
    "dropout": {"networks": {"lora": {**LORA["lora"], "args": {"rank": 2, "rank_dropout": 0.5}}}},
    "prodigy": {
        "networks": LORA,
        "optimizer": {"module": "prodigyopt.Prodigy"},
        "train": {"learning_rate": 1.0},
    },
    "schedule-free": {
        "networks": LORA,
        "optimizer": {"module": "schedulefree.AdamWScheduleFree", "args": {"warmup_steps": 2}},
        "sample": SAMPLE,
    },
    "sgd": {
        "networks": LORA,
        "optimizer": {"module": "torch.optim.SGD", "args": {"momentum": 0.9}},
    },
    "adafactor": {
        "networks": LORA,
        "optimizer": {
            "module": "transformers.Adafactor",
            "args": {"relative_step": False, "scale_parameter": False},
        },
    },
    "schedule": {"networks": LORA, "lr_scheduler": {"name": "cosine", "warmup_steps": 2}},
    "validation": {
        "networks": LORA,
        "validation": {"split": 0.4, "every_steps": 2, "keep_best": True},
    },
    "text stop": {
        "networks": {
            "lora": {**LORA["lora"], "args": {"rank": 2, "targets": ["unet", "text_encoders"]}}
        },
        "train": {"stop_text_encoders_after": 2},
    },
    "textual inversion": {
        "networks": {
            "cat": {
                "module": "networks.textual_inversion.TextualInversion",
                "args": {"tokens": {"<cat>": "cat"}},
            }
        },
        "dataset": {"args": {"prefix": "<cat> "}},
    },
    "controlnet": {
        "networks": {"control": {"module": "networks.controlnet.ControlNet"}},
        "dataset": {"args": {"extras": {"control": "image"}}},
        "sample": {**SAMPLE, "prompts": None, "num_images": 1},
    },
    "pfg": {
        "networks": {"pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12}}},
        "dataset": {"args": {"extras": {"pfg": "npz"}}},
    },
    "hypernetwork": {"networks": {"hyper": {"module": "networks.hypernetwork.Hypernetwork"}}},
    "vae": {
        "model": {"trainable": ["vae.decoder", "vae.post_quant_conv"]},
        "objective": {"module": "modules.reconstruction.Reconstruction"},
        "dataset": {"module": "modules.dataset.ImageDataset"},
        "sample": {"num_images": 2},
    },
}

FAST = ("lora", "full", "ema", "accumulation", "augmentation", "schedule-free", "controlnet", "vae")


@pytest.fixture(scope="module")
def guided_directory(tmp_path_factory) -> Path:
    """Images of two buckets with guides and features."""
    directory = tmp_path_factory.mktemp("guided") / "data"
    return tiny.save_dataset(directory, {(32, 32): 5, (48, 32): 3}, side_inputs=True)


@pytest.fixture
def write(write_config, dataset_directory, guided_directory):
    """Write the config of one of RUNS, or of other sections."""

    def write(**sections: Any) -> Path:
        train = {"max_train_steps": 6, "log_every": 2, "batch_size": 2, "learning_rate": 1e-3}
        own = {name: dict(values) for name, values in sections.items()}
        own["train"] = {**train, **own.get("train", {})}
        own["save"] = {"every_steps": 3, "keep_last": 1, **own.get("save", {})}
        for section in ("dataset", "prior"):
            if section in own:
                args = own[section].get("args", {})
                path = guided_directory if "extras" in args else dataset_directory
                own[section]["args"] = {"path": str(path), **args}
        return write_config(**own)

    return write


def results(trainer: Trainer) -> dict[str, Any]:
    """All that a run leaves: tensors, its state, what was logged, the bytes of its pictures."""
    folder = trainer.directory
    left: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).replace(trainer.name, "*")
        if path.suffix == ".safetensors":
            left[name] = load_file(path)
        elif path.name == "optimizer.pt":
            left[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".png" and path.name != "loss.png":
            left[name] = Image.open(path).tobytes()
        elif path.name == "coverage.csv":
            left[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            left[name] = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
        elif path.is_file():
            left.setdefault("others", []).append(re.sub(r"tfevents\S+|\d+\.\d+", "", name))
    return left


def assert_equal(one: Any, two: Any, where: str = "") -> None:
    """Compare nested results, tensors bit by bit."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key, value in one.items():
            assert_equal(value, two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, value in enumerate(one):
            assert_equal(value, two[number], f"{where}/{number}")
    else:
        assert one == two, where


def train(path: Path, *overrides: str) -> Trainer:
    trainer = assemble(path, *overrides)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in RUNS]
)
def test_a_rehearsed_run_ends_as_one_that_was_not(kind, write, caplog):
    caplog.set_level(logging.INFO)
    path = write(**RUNS[kind])
    plain = train(path, "save.name=aaaa")
    assert "rehearsal" not in caplog.text
    rehearsed = train(path, "save.name=bbbb", "train.rehearse=true")
    assert caplog.text.count("rehearsal: largest bucket") == 1
    assert "verified and loaded again" in caplog.text
    assert_equal(results(plain), results(rehearsed))


@pytest.mark.parametrize(
    "kind",
    [
        "schedule-free",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("full", "ema", "prodigy")),
    ],
)
def test_so_does_a_resumed_run_rehearsed_each_time(kind, write):
    path = write(**RUNS[kind])
    whole = train(path, "save.name=aaaa")
    interrupted(path, 4, "save.name=bbbb", "train.rehearse=true")
    resumed = train(path, "save.name=bbbb", "train.resume=auto", "train.rehearse=true")
    assert_equal(results(whole), results(resumed))


def test_a_resumed_run_may_be_rehearsed_where_it_was_not(write, caplog):
    caplog.set_level(logging.INFO)
    path = write(networks=LORA)
    whole = train(path, "save.name=aaaa")
    interrupted(path, 4, "save.name=bbbb")
    resumed = train(path, "save.name=bbbb", "train.resume=auto", "train.rehearse=true")
    assert "rehearsal: largest bucket" in caplog.text
    assert_equal(results(whole), results(resumed))


def test_the_largest_batch_is_tried_in_a_step_before_the_first(write, monkeypatch):
    """That of the most pixels, with the state of the optimizer already in memory."""
    seen: list[tuple[int, tuple[int, ...], bool]] = []
    make = Trainer.train_step

    def train_step(self, group):
        has_state = bool(self.optimizer.state)
        shapes = {tuple(part.batch.latents.shape) for part in group}
        seen.extend((self.step, shape, has_state) for shape in shapes)
        return make(self, group)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    path = write(networks=LORA, train={"gradient_accumulation_steps": 2, "batch_size": 4})
    trainer = assemble(path, "train.rehearse=true")
    # Five squares, three wide ones: 4 * 32 * 32 pixels at most in one, 3 * 48 * 32 in the other.
    assert seen == [(0, (4, 4, 8, 8), False), (0, (3, 4, 8, 12), True)]
    assert trainer.step == 0
    assert not trainer.optimizer.state


@pytest.mark.parametrize(("steps", "rehearsed"), [(500, False), (501, True)])
def test_runs_of_over_500_steps_are_rehearsed(write, caplog, steps, rehearsed):
    caplog.set_level(logging.INFO)
    path = write(networks=LORA, train={"max_train_steps": steps}, sample=SAMPLE)
    trainer = assemble(path)
    assert ("rehearsal: " in caplog.text) == rehearsed
    if rehearsed:
        report = re.search(r"rehearsal: (.*)", caplog.text)
        assert report is not None
        time = r"\d+\.\d+ s"
        assert re.fullmatch(
            rf"largest bucket 48x32 \(2 images\) {time}; smallest 32x32 \(2 images\) {time}; "
            rf"sample {time}; save {time}, verified and loaded again",
            report[1],
        )
        assert re.search(r"the run will take about .* \(501 steps\)", caplog.text)
    assert {p.name for p in trainer.directory.iterdir()} <= {"config.yaml", "manifest.jsonl"}
    assert not assemble(path, "train.rehearse=false").optimizer.state
    assert caplog.text.count("rehearsal: ") == int(rehearsed)


def test_trackers_and_metrics_see_nothing(write, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    for name in ("log", "log_images"):
        monkeypatch.setattr(TensorBoardTracker, name, lambda *_, **__: pytest.fail("logged"))
    trainer = assemble(
        write(networks=LORA, sample=SAMPLE, loggers={"tensorboard": None}), "train.rehearse=true"
    )
    assert not (trainer.directory / "metrics.jsonl").exists()
    assert trainer.step_log.pending() == []
    assert trainer.step_log.clock.take().phases == {}


def test_a_save_that_fails_is_said_before_training(write, tmp_path, monkeypatch):
    from networks.lora import LoRA

    def save(self, path, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(LoRA, "save", save)
    with pytest.raises(RunError) as caught:
        assemble(write(networks=LORA), "train.rehearse=true")
    assert str(caught.value) == (
        "rehearsal: a save failed: No space left on device; see the section save. Nothing was "
        "trained, and nothing of it is left on the disk; train.rehearse=false begins without a "
        "rehearsal"
    )
    assert list((tmp_path / "output").iterdir()) == []


def test_an_optimizer_that_cant_be_resumed_is_said_before_training(write):
    path = write(networks=LORA, optimizer={"module": "plugged_in.Forgetful"})
    with pytest.raises(RunError, match=r"rehearsal: keeping the state failed: .* can't be read .*"):
        assemble(path, "train.rehearse=true")
    train(path, "train.rehearse=true", "save.state=false")


def test_out_of_memory_names_the_bucket(write, tmp_path):
    """A device that has no room for the wide images; allocating them fails for good."""
    path = write(networks=LORA, objective={"module": "plugged_in.Hungry"})
    with pytest.raises(RunError) as caught:
        assemble(path, "train.rehearse=true")
    message = str(caught.value)
    assert message.startswith(
        "rehearsal: out of memory in a step with the largest bucket, 48x32 (2 images) ("
    )
    assert "; lower train.batch_size" in message
    assert list((tmp_path / "output").iterdir()) == []


def test_a_failing_sample_is_said(write, monkeypatch):
    monkeypatch.setattr(
        "modules.picture_batches.draw_images", lambda *_, **__: 1 / 0 and pytest.fail("drawn")
    )
    with pytest.raises(RunError, match=r"^rehearsal: a validation image failed: ZeroDivisionError"):
        assemble(write(networks=LORA, sample=SAMPLE), "train.rehearse=true")


def test_a_failing_rehearsal_leaves_a_resumed_run_where_it_was(write):
    path = write(networks=LORA, objective={"module": "plugged_in.Epsilon"})
    stopped = interrupted(path, 4)
    before = {p.name for p in stopped.directory.iterdir()}
    with pytest.raises(RunError, match="out of memory"):
        assemble(
            path,
            "train.resume=auto",
            "train.rehearse=true",
            "objective.module=plugged_in.Hungry",
            "train.accept_changes=[objective]",
        )
    assert {p.name for p in stopped.directory.iterdir()} == before
    assert len(find_states(stopped.directory)) == 1


def test_savers_and_samplers_of_a_persons_own_are_left_out_and_said(write, caplog):
    caplog.set_level(logging.INFO)
    own = {"module": "plugged_in.OwnSaver"}
    sample = {"module": "plugged_in.OwnSampler"}
    assemble(write(networks=LORA, save=own, sample=sample), "train.rehearse=true")
    assert "sample left out, OwnSampler has no rehearse; save left out, OwnSaver has" in caplog.text


def test_steps_that_are_not_finite_are_said_and_change_nothing(write, caplog, monkeypatch):
    monkeypatch.setenv("POISONED", "1")
    path = write(networks=LORA, objective={"module": "plugged_in.Poisoned"})
    trainer = assemble(path, "train.rehearse=true")
    assert "rehearsal: loss or gradient of 1 of 2 steps is not finite" in caplog.text
    assert trainer.guard.take_skipped() == 0


def test_durations():
    assert [duration(s) for s in (3.2, 98, 100, 3600, 7800, 90000)] == [
        *("3 s", "98 s", "2 min", "60 min", "2 h 10 min", "25 h 0 min")
    ]
