"""Hints at what slows a run down."""

from __future__ import annotations

import time

import pytest

from modules.bottlenecks import Bottlenecks
from modules.config import load
from modules.dataset import LatentDataset
from modules.step_clock import Times
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
BOUND = Times(20, 10.0, {"data": 2.5, "forward": 5.0})


@pytest.fixture
def hints(caplog):
    """What was said so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == "modules.bottlenecks"]


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 1), (0.0, 0)])
def test_a_run_that_waits_for_its_data_says_so_once(
    write_config, monkeypatch, hints, seconds, expected
):
    read = LatentDataset.__getitem__

    def read_slowly(self, index):
        time.sleep(seconds)
        return read(self, index)

    monkeypatch.setattr(LatentDataset, "__getitem__", read_slowly)
    train = {"max_train_steps": 50, "log_every": 10}
    trainer = Trainer.from_config(load(write_config(networks=LORA, train=train)))
    trainer.train()
    assert len(hints()) == expected
    if expected:
        assert hints()[0].startswith("step 30: waits for data in ")
        assert "set dataset.num_workers higher (now 0), cache latents" in hints()[0]


def test_a_hint_comes_back_after_a_thousand_steps(hints):
    bottlenecks = Bottlenecks(2)
    for step in range(1, 2042, 20):
        bottlenecks.look(BOUND, {}, step=step)
    told = hints()
    assert [hint.partition(":")[0] for hint in told] == ["step 21", "step 1021", "step 2021"]
    assert "in 25 % of its time (0.12 of 0.50 s)" in told[0]
    assert "(now 2)" in told[0]


@pytest.mark.parametrize(
    "times",
    [
        Times(20, 10.0, {"data": 1.9}),  # less than a fifth
        Times(20, 1.0, {"data": 0.9}),  # a toy
        Times(19, 10.0, {"data": 9.0}),  # one burst of the workers
        Times(20, 10.0, {}),  # not measured
    ],
)
def test_what_tells_nothing_gives_no_hint(hints, times):
    bottlenecks = Bottlenecks(0)
    bottlenecks.look(BOUND, {}, step=1)  # the first line is the start's
    bottlenecks.look(times, {}, step=20)
    assert hints() == []


@pytest.mark.parametrize(("share", "expected"), [(0.96, 1), (0.94, 0)])
def test_a_card_that_is_full(hints, share, expected):
    bottlenecks = Bottlenecks(0)
    for step in (1, 10, 20):
        memory = {"memory/peak_gib": 22.04, "memory/used_share": share}
        bottlenecks.look(Times(1, 1.0, {}), memory, step=step)
    assert len(hints()) == expected
    if expected:
        assert hints()[0].startswith(
            "step 1: the card's memory is 96 % full (the run's tensors: 22.0 GiB at most)"
        )
