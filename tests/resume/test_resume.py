"""Which run goes on, what may be different then, and what is said of the rest."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
import torch
from interrupted_runs import LORA, assemble, interrupted, stop_after
from PIL import Image
from safetensors.torch import load_file

import main
from modules.checkpoint import TrainState
from modules.errors import ConfigError, Interrupted
from modules.resume import run_folders
from modules.state_folder import find_states
from modules.trainer import Trainer


@pytest.fixture
def path(write_config) -> Path:
    return write_config(
        networks=LORA, train={"max_train_steps": 5}, save={"every_steps": 2, "keep_last": 1}
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return load_file(trainer.directory / f"{trainer.name}.safetensors")


def test_a_signal_ends_the_step_and_tells_how_to_go_on(path, capfd):
    whole = assemble(path, "save.name=whole")
    whole.train()
    trainer = assemble(path)
    stop_after(trainer, 3)
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert trainer.step == 3
    assert caught.value.status == 128 + signal.SIGTERM
    command = str(caught.value).partition("go on with: python main.py ")[2].split()
    assert main.main(command) == 0
    ended = load_file(trainer.directory / "run.safetensors")
    assert all(torch.equal(ended[key], value) for key, value in weights(whole).items())
    assert main.main(command) == 0
    said = f"nothing left to do: {trainer.directory} has done 5 of 5 steps"
    assert said in capfd.readouterr().out


def test_ctrl_c_twice_stops_at_once(path):
    trainer = assemble(path)
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 2
    assert [state.name for state in find_states(trainer.directory)] == ["state-step00000002"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_file_asks_for_a_save_and_another_for_the_end(path, monkeypatch):
    monkeypatch.setattr("modules.requests._SECONDS", 0.0)
    trainer = assemble(path)
    make = trainer.train_step

    def train_step(group):
        asked = {1: "save", 3: "save_quit"}.get(trainer.step + 1)
        if asked:
            (trainer.directory / asked).touch()
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.status == 130
    names = {entry.name for entry in trainer.directory.iterdir()}
    # That of step 1 was asked for and is none of those that `keep_last` counts.
    assert names >= {f"run-step0000000{step}.safetensors" for step in (1, 2, 3)}
    assert "state-step00000003" in names
    assert not names & {"save", "save_quit"}


def test_auto_begins_anew_where_nothing_can_go_on(path, tmp_path):
    first = assemble(path, "train.resume=auto")
    assert (first.directory.name, first.step) == ("run", 0)
    second = assemble(path, "train.resume=auto")  # the first has left no state
    assert (second.directory.name, second.step) == ("run-2", 0)
    for name in ("run-10", "run-1", "running", "run-2x"):
        (tmp_path / "output" / name).mkdir()
    found = [folder.name for folder in run_folders(tmp_path / "output", "run")]
    assert found == ["run-10", "run-2", "run"]


def test_a_folder_without_a_state(path, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.resume: .*nowhere holds no state of a run"):
        assemble(path, f"train.resume={tmp_path / 'nowhere'}")


def test_what_has_changed_is_named_with_both_values(path):
    interrupted(path, 3)
    changes = ("train.max_train_steps=8", "train.learning_rate=1e-4", "networks.lora.args.alpha=4")
    with pytest.raises(ConfigError) as caught:
        assemble(path, "train.resume=auto", *changes)
    lines = str(caught.value).splitlines()[1:]
    assert lines[:3] == [
        "  networks.lora.args.alpha: None then, 4 now",
        "  train.learning_rate: 0.001 then, 0.0001 now",
        "  train.max_train_steps: 5 then, 8 now",
    ]
    accept = lines[3].partition("go on with the new ones: ")[2].strip("'")
    trainer = assemble(path, "train.resume=auto", *changes, accept)
    trainer.train()
    assert trainer.step == 8
    rates = [record["learning_rate/lora.unet"] for record in trainer.metrics.read()]
    assert rates == [1e-3] * 3 + [1e-4] * 5


def test_a_rate_follows_from_the_step_and_the_number_of_steps_of_now(write_config):
    cosine = {"networks": LORA, "lr_scheduler": {"name": "cosine"}}
    path = write_config(train={"max_train_steps": 6}, **cosine)
    interrupted(path, 3)
    longer = "train.max_train_steps=9"
    accepted = "train.accept_changes=[train.max_train_steps]"
    resumed = assemble(path, "train.resume=auto", longer, accepted)
    whole = assemble(path, "save.name=whole", longer)
    for trainer in (resumed, whole):
        trainer.train()
    rates = [
        [record["learning_rate/lora.unet"] for record in trainer.metrics.read()]
        for trainer in (resumed, whole)
    ]
    assert rates[0][3:] == rates[1][3:]
    assert rates[0][2] != rates[1][2]


def test_what_has_no_effect_on_weights_may_change(path):
    interrupted(path, 3)
    free = ("save.dtype=bf16", "train.log_every=3", "save.every_steps=4", "dataset.num_workers=1")
    assert assemble(path, "train.resume=auto", *free).step == 3


def test_a_run_that_was_begun_before_a_key_was_known(path, monkeypatch):
    """It goes on with the key's default, and with no other value."""

    def known_then(config):
        known = asdict(config)
        del known["train"]["minibatch_repeat"], known["lr_scheduler"]["power"]
        return known

    with monkeypatch.context() as earlier:
        earlier.setattr("modules.run_identity.asdict", known_then)
        interrupted(path, 3)
    assert assemble(path, "train.resume=auto").step == 3
    with pytest.raises(ConfigError, match=r"train\.minibatch_repeat: 1 then, 2 now"):
        assemble(path, "train.resume=auto", "train.minibatch_repeat=2")


def test_a_dataset_with_other_images(write_config, tmp_path):
    data = tiny.save_dataset(tmp_path / "data", {(32, 32): 6})
    path = write_config(
        networks=LORA,
        dataset={"args": {"path": str(data)}},
        train={"max_train_steps": None, "max_train_epochs": 2},
    )
    interrupted(path, 4)
    index = data / "buckets.json"
    buckets = json.loads(index.read_text())
    buckets["(32, 32)"].pop()
    index.write_text(json.dumps(buckets))
    with pytest.raises(ConfigError, match=r"dataset\.images: '6 images .* then, '5 images .* now"):
        assemble(path, "train.resume=auto")
    trainer = assemble(path, "train.resume=auto", "train.accept_changes=[dataset]")
    assert (trainer.step, trainer.max_train_steps) == (4, 6)


def test_other_networks_than_the_state_has(path):
    interrupted(path, 3)
    options = ("networks.lora.args.rank=3", "train.accept_changes=[networks]")
    with pytest.raises(ConfigError, match=r"lora_down\.weight has shape \(2, .*\) in it, now"):
        assemble(path, "train.resume=auto", *options)
    options = ("model.trainable=[unet.mid_block]", "train.accept_changes=[model]")
    with pytest.raises(ConfigError, match=r"base\.unet\.mid_block.* is not in it"):
        assemble(path, "train.resume=auto", *options)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "progress.json"])
def test_a_state_that_was_changed(path, file):
    trainer = interrupted(path, 3)
    (state,) = find_states(trainer.directory)
    content = bytearray((state / file).read_bytes())
    content[-2] ^= 1
    (state / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{file}: is not as it was written|is no state of a run"):
        assemble(path, "train.resume=auto")
    (state / file).unlink()
    with pytest.raises(ConfigError, match=f"{file} is missing|is no state of a run"):
        assemble(path, "train.resume=auto")


def test_rotation_goes_on_over_a_resume(path):
    trainer = interrupted(path, 3)
    assert (trainer.directory / "run-step00000002.safetensors").is_file()
    resumed = assemble(path, "train.resume=auto")
    resumed.train()
    names = {entry.name for entry in resumed.directory.glob("*.safetensors")}
    assert names == {"run-step00000004.safetensors", "run.safetensors"}


def test_an_error_keeps_the_state_first(path, caplog):
    trainer = assemble(path)
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert "step 3 is kept; go on with: python main.py" in caplog.text
    assert assemble(path, "train.resume=auto").step == 3


def test_an_error_in_the_middle_of_an_update_keeps_the_state_before(path, monkeypatch):
    trainer = assemble(path)
    schedule = type(trainer.lr_scheduler)
    step = schedule.step

    def fail(self):
        if trainer.step + 1 == 4:
            raise RuntimeError("half of the weights have moved")
        step(self)

    monkeypatch.setattr(schedule, "step", fail)
    with pytest.raises(RuntimeError, match="half of the weights"):
        trainer.train()
    assert [state.name for state in find_states(trainer.directory)] == ["state-step00000002"]


def test_samples_and_trackers_that_fail_cost_a_warning(path, caplog, monkeypatch):
    trainer = assemble(path)

    class Broken:
        name = "broken"

        def sample_if_due(self, _run, *, last):
            raise RuntimeError("no picture")

        def log(self, _values, step):
            raise ConnectionError("no network")

        def finish(self):
            raise ConnectionError("still none")

    trainer.sampler = Broken()
    trainer.accelerator.trackers.append(Broken())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.step == 5
    for part in ("sample: no picture", "loggers.broken: no network", "loggers: still none"):
        assert part in caplog.text


def test_a_disk_that_is_full_in_between_costs_a_warning(path, monkeypatch, caplog):
    trainer = assemble(path)
    save = trainer.networks["lora"].save

    def full(target, **options):
        if trainer.step == 2:
            raise OSError(28, "No space left on device")
        save(target, **options)

    monkeypatch.setattr(trainer.networks["lora"], "save", full)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "No space left on device); training goes on" in caplog.text
    names = {entry.name for entry in trainer.directory.glob("*.safetensors")}
    assert names == {"run-step00000004.safetensors", "run.safetensors"}


def test_a_state_that_cannot_be_written_leaves_the_one_before(path, monkeypatch, caplog):
    trainer = assemble(path)
    write = torch.save

    def full(content, file):
        if trainer.step == 4:
            Path(file).write_bytes(b"half of it")
            raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos")
        write(content, file)

    monkeypatch.setattr("modules.checkpoint.torch.save", full)
    stop_after(trainer, 4)
    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted):
        trainer.train()
    assert "the state before it stays" in caplog.text
    assert [state.name for state in find_states(trainer.directory)] == ["state-step00000002"]
    assert assemble(path, "train.resume=auto").step == 2


def test_no_space_and_no_permission_are_found_before_training(path, monkeypatch, tmp_path):
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"has 0\.00 GB free, and the first save needs"):
        assemble(path)
    monkeypatch.undo()
    assert not (tmp_path / "output").exists()
    interrupted(path, 3)

    def refuse(_path, _content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ConfigError, match=r"nothing can be written in .*run: Permission denied"):
        assemble(path, "train.resume=auto")


def test_states_can_be_left_out_but_for_an_early_end(path):
    trainer = assemble(path, "save.state=false")
    trainer.train()
    assert not find_states(trainer.directory)
    stopped = interrupted(path, 3, "save.state=false", "save.name=other")
    assert [state.name for state in find_states(stopped.directory)] == ["state-step00000003"]


def test_a_state_comes_after_some_minutes_at_the_latest(path, monkeypatch):
    trainer = assemble(path, "save.every_steps=100", "save.state_every_minutes=1e-9")
    seen = []
    keep = trainer.keeper.keep

    def noted(run):
        seen.append(run.step)
        return keep(run)

    monkeypatch.setattr(trainer.keeper, "keep", noted)
    trainer.train()
    assert seen == [1, 2, 3, 4, 5]


def test_curves_go_on_where_they_were(write_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = write_config(
        networks=LORA,
        train={"max_train_steps": 5},
        save={"every_steps": 2},
        loggers={"tensorboard": None, "wandb": None},
    )
    trainer = assemble(path)
    make = trainer.train_step

    def train_step(group):
        if trainer.step + 1 == 4:
            raise KeyboardInterrupt  # as a second Ctrl-C: step 3 is logged, the state is of step 2
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = assemble(path, "train.resume=auto")
    assert resumed.step == 2
    resumed.train()
    events = EventAccumulator(str(trainer.directory / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in resumed.metrics.read()] == [1, 2, 3, 4, 5]
    runs = [p.name for p in (trainer.directory / "wandb").glob("offline-run-*")]
    (name,) = {run.split("-")[3] for run in runs}  # two of one second have a number behind it
    assert name == (trainer.directory / "wandb_id").read_text().strip()


def test_before_and_after_over_a_resume(path, write_config):
    sample = {
        "prompts": ["a cat", "a dog"],
        "width": 32,
        "height": 32,
        "num_inference_steps": 1,
        "every_steps": 2,
    }
    whole = assemble(
        write_config("whole", networks=LORA, train={"max_train_steps": 5}, sample=sample)
    )
    whole.train()
    config = write_config("cut", networks=LORA, train={"max_train_steps": 5}, sample=sample)
    trainer = interrupted(config, 4)
    drawn = trainer.directory / "samples" / "step00000004.png"
    before = drawn.stat().st_mtime_ns
    resumed = assemble(config, "train.resume=auto")
    resumed.train()
    assert drawn.stat().st_mtime_ns == before  # not drawn again
    files = ["before_after.png", "samples/step00000004.png", "samples/step00000005/01.png"]
    for file in files:
        one, two = (Image.open(t.directory / file) for t in (whole, resumed))
        assert list(one.getdata()) == list(two.getdata())


def test_the_gradient_scaler_goes_on(path):
    """As under fp16, which is for GPUs."""
    first, second = assemble(path, "save.name=one"), assemble(path, "save.name=two")
    for trainer in (first, second):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler = first.accelerator.scaler
    scaler.scale(torch.ones(()))  # makes its tensors
    scaler.update(new_scale=0.5)
    TrainState.of(first).save(first.directory / "state")
    TrainState.load(first.directory / "state").apply(second)
    assert second.accelerator.scaler.state_dict() == scaler.state_dict()
    assert second.accelerator.scaler.get_scale() == 0.5
