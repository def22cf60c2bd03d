"""tensorboard and wandb with the real packages; a broken one never costs the run."""

from __future__ import annotations

import pytest

from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
SAMPLE = {"prompts": ["a cat", "a dog"], "width": 32, "height": 32, "num_inference_steps": 1}


def test_tensorboard_gets_metrics_and_images(write_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = write_config(networks=LORA, sample=SAMPLE, loggers={"tensorboard": None})
    trainer = Trainer.from_config(load(path))
    trainer.train()
    events = EventAccumulator(str(trainer.directory / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([r["loss"] for r in trainer.metrics.read()])
    assert [event.step for event in events.Images("samples")] == [0, 2]


def test_images_of_several_sizes_have_a_key_for_each(write_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sample = {**SAMPLE, "prompts": ["a cat", "a dog --w 48", "a mat"]}
    path = write_config(networks=LORA, sample=sample, loggers={"tensorboard": None})
    trainer = Trainer.from_config(load(path))
    trainer.train()
    events = EventAccumulator(str(trainer.directory / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    sizes = {key: [event.width for event in events.Images(key)] for key in events.Tags()["images"]}
    # tensorboard shows the two of one size beside each other
    assert sizes == {"samples/32x32": [64, 64], "samples/48x32": [48, 48]}


def test_wandb_logs_offline_without_a_key(write_config, monkeypatch, capfd):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    path = write_config(networks=LORA, sample=SAMPLE, loggers={"wandb": {"project": "cats"}})
    from modules.console import set_up_logging

    set_up_logging()
    trainer = Trainer.from_config(load(path))
    trainer.train()
    shown = capfd.readouterr().out
    assert "warning: wandb: " in shown
    assert "logging offline to" in shown
    runs = list((trainer.directory / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    pictures = list((trainer.directory / "wandb").rglob("samples_*.png"))
    assert len(pictures) == 4


def test_an_unknown_logger_is_named_before_the_model_is_loaded(write_config):
    path = write_config(networks=LORA, loggers={"tensorbord": None})
    message = r"loggers\.tensorbord: there is no such logger; did you mean 'tensorboard'\?"
    with pytest.raises(ConfigError, match=message):
        Trainer.from_config(load(path))


def test_a_tracker_that_fails_does_not_cost_the_run(write_config, capfd):
    from modules.console import set_up_logging

    set_up_logging()
    path = write_config(networks=LORA, loggers={"tensorboard": {"no_such_argument": 1}})
    trainer = Trainer.from_config(load(path))
    trainer.train()
    assert "warning: loggers.tensorboard: not started" in capfd.readouterr().out
    assert len(trainer.metrics.read()) == 2
