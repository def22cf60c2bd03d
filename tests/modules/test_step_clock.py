"""Where the time of a step goes, in the lines that real runs log."""

from __future__ import annotations

import signal
import time

import pytest
import torch

from modules.config import load
from modules.dataset import LatentDataset
from modules.errors import Interrupted
from modules.step_clock import PHASES, StepClock
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
NAMES = (*PHASES, "other")
SLOW = 0.3  # seconds, far above what a phase of the tiny model takes


def make_trainer(path, *overrides) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def slow_down(trainer: Trainer, phase: str, monkeypatch) -> None:
    """Make a phase of each step longer."""
    first = next(p for group in trainer.groups for p in group.parameters)
    if phase == "data":
        read = LatentDataset.__getitem__

        def read_slowly(self, index):
            time.sleep(SLOW)
            return read(self, index)

        monkeypatch.setattr(LatentDataset, "__getitem__", read_slowly)
    elif phase == "forward":
        trainer.model.denoiser.register_forward_pre_hook(lambda *_: time.sleep(SLOW))
    elif phase == "backward":
        first.register_hook(lambda _: time.sleep(SLOW))
    elif phase == "optimizer":
        trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: time.sleep(SLOW))
    else:
        save = trainer.saver.save_if_due

        def save_slowly(run, *, last):
            time.sleep(SLOW)
            save(run, last=last)

        trainer.saver.save_if_due = save_slowly


@pytest.mark.parametrize("slow", NAMES)
def test_a_line_tells_which_phase_is_slow(write_config, monkeypatch, slow):
    train = {"max_train_steps": 4, "log_every": 3}
    trainer = make_trainer(write_config(networks=LORA, train=train))
    slow_down(trainer, slow, monkeypatch)
    begun = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - begun
    lines = trainer.metrics.read()
    assert [line["step"] for line in lines] == [1, 3, 4]
    line = lines[1]  # steps 2 and 3; what follows a line is part of the next
    spent = {name: line[f"seconds/{name}"] for name in NAMES}
    assert sum(spent.values()) == pytest.approx(line["seconds_per_step"], abs=1e-6)
    assert max(spent, key=spent.get) == slow
    assert spent[slow] >= SLOW * 0.99
    seconds = [line["seconds_per_step"] * n for line, n in zip(lines, (1, 2, 1), strict=True)]
    assert sum(seconds) <= whole


def test_all_batches_of_a_step_count(write_config, monkeypatch):
    train = {"max_train_steps": 2, "log_every": 1, "gradient_accumulation_steps": 3}
    trainer = make_trainer(write_config(networks=LORA, train={**train, "batch_size": 1}))
    slow_down(trainer, "forward", monkeypatch)
    trainer.train()
    line = trainer.metrics.read()[-1]
    assert line["seconds/forward"] >= 3 * SLOW * 0.99
    assert line["images_per_second"] == pytest.approx(3 / line["seconds_per_step"])


def test_validation_is_not_part_of_a_step(write_config, monkeypatch):
    path = write_config(
        networks=LORA, validation={"every_steps": 1, "split": 0.25}, train={"max_train_steps": 3}
    )
    trainer = make_trainer(path)
    measure, measured = trainer.validation.measure, []

    def measure_slowly(run):
        measured.append(time.sleep(3))
        return measure(run)

    monkeypatch.setattr(trainer.validation, "measure", measure_slowly)
    trainer.train()
    assert len(measured) == 4
    lines = [line for line in trainer.metrics.read() if "seconds_per_step" in line]
    assert all(line["seconds_per_step"] < 3 for line in lines[1:])  # step 1 warms up


def test_steps_before_a_resumed_state_are_not_timed(write_config, monkeypatch):
    train = {"max_train_steps": 5, "log_every": 5, "resume": "auto"}
    path = write_config(networks=LORA, train=train)
    first = make_trainer(path)
    make_step = first.train_step

    def ask_for_the_end(group):
        if first.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return make_step(group)

    first.train_step = ask_for_the_end
    with pytest.raises(Interrupted):
        first.train()
    second = make_trainer(path)
    assert second.step == 4
    assert len(second.step_log.pending()) == 3  # steps 2 to 4 are part of the next line's loss
    slow_down(second, "forward", monkeypatch)
    second.train()
    line = second.metrics.read()[-1]
    assert line["seconds/forward"] >= SLOW * 0.99
    images = line["images_per_second"] * line["seconds_per_step"]
    assert images == pytest.approx(second.last_group[0].images)


def test_other_devices_time_whole_steps_only():
    clock = StepClock(torch.device("mps"))
    groups = clock.timed(iter("abc"))
    for _ in range(2):
        next(groups)
        clock.lap("forward")
    times = clock.take()
    assert (times.steps, times.phases) == (2, {})
    assert times.per_step() == {"seconds_per_step": times.seconds / 2}


class PlayedEvent:
    """An event that can't be read before it is waited for; 10 ms lie between two."""

    done: set[PlayedEvent]
    recorded: list[PlayedEvent]

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = 10.0 * len(self.recorded)  # ms
        self.recorded.append(self)

    def synchronize(self):
        self.done.update(self.recorded[: self.recorded.index(self) + 1])

    def elapsed_time(self, end):
        if not {self, end} <= self.done:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return end.at - self.at


def test_a_card_is_asked_only_when_times_are_taken(monkeypatch):
    """`tests/gpu` has the same on a real one."""
    monkeypatch.setattr(PlayedEvent, "done", set(), raising=False)
    monkeypatch.setattr(PlayedEvent, "recorded", [], raising=False)
    monkeypatch.setattr(torch.cuda, "Event", PlayedEvent)
    clock = StepClock(torch.device("cuda"))
    groups = clock.timed(iter("abcd"))
    for _ in range(2):
        for _ in range(2):
            next(groups)
            for _ in range(2):  # accumulation
                clock.lap("forward")
                clock.lap("backward")
            clock.lap("optimizer")
            taken = len(PlayedEvent.done)
        assert taken in (0, 14)
        times = clock.take()
        assert times.steps == 2
        assert times.phases == pytest.approx(
            {"data": 0.02, "forward": 0.04, "backward": 0.04, "optimizer": 0.02}
        )
