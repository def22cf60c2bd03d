"""Text encoders that rest encode each caption once in a run."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

from modules.config import load
from modules.text_memory import TextMemory
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
STEPS = {"max_train_steps": 12, "batch_size": 2}


@pytest.fixture
def run(write_config):
    """Train; returns the trainer, and the captions that its text encoder read in each call."""

    def train(**sections):
        config = load(write_config(**{"networks": LORA, "train": STEPS, **sections}))
        trainer = Trainer.from_config(config)
        read, encode = [], trainer.model.text_encoders[0].ids
        trainer.model.text_encoders[0].ids = lambda captions: (
            read.append(list(captions)) or encode(captions)
        )
        trainer.train()
        return trainer, read

    return train


def test_each_caption_is_encoded_once_and_dropped_ones_once(run, dataset_directory):
    args = {"path": str(dataset_directory), "caption_dropout": 0.5}
    _, read = run(dataset={"args": args})
    files = (dataset_directory / "captions").iterdir()
    captions = {file.read_text(encoding="utf-8").strip() for file in files}
    assert all(len(call) == 1 for call in read)
    flat = [caption for (caption,) in read]
    assert sorted(flat) == sorted(set(flat))
    assert "" in flat
    assert set(flat) <= captions | {""}


def test_captions_that_change_are_encoded_batch_by_batch(run, dataset_directory, tmp_path):
    path = shutil.copytree(dataset_directory, tmp_path / "tags")
    for file in (path / "captions").iterdir():
        file.write_text("red, round, large", encoding="utf-8")
    trainer, read = run(dataset={"args": {"path": str(path), "shuffle_caption": True}})
    assert trainer.model.text_memory is None
    assert max(len(call) for call in read) == 2
    assert len(read) == STEPS["max_train_steps"]


@pytest.mark.parametrize(
    "sections",
    [
        {"networks": {"lora": {**LORA["lora"], "args": {"targets": ["text_encoders"]}}}},
        {"train": {**STEPS, "text_memory_gib": 0}},
    ],
    ids=["trained", "switched off"],
)
def test_nothing_is_kept(run, sections):
    trainer, read = run(**sections)
    assert trainer.model.text_memory is None
    assert len(read) == STEPS["max_train_steps"]


def test_more_than_there_is_room_for_is_told(run, caplog):
    with caplog.at_level(logging.INFO):
        trainer, _ = run(train={**STEPS, "text_memory_gib": 1e-6})
    assert trainer.model.text_memory is None
    assert "more than train.text_memory_gib: 1e-06" in caplog.text


def test_what_is_kept_is_what_the_encoders_give(run):
    trainer, _ = run()
    model = trainer.model
    captions = ["red", "round", "red"]
    assert len(model.text_memory) == 2  # captions of eight images
    with torch.no_grad():
        live = model.encode_text(captions)
    kept = model.text_memory(captions)
    assert kept.keys() == live.keys()
    for key, value in kept.items():
        torch.testing.assert_close(value, live[key], rtol=0, atol=1e-6)
        assert value.dtype == live[key].dtype


def test_a_caption_gives_the_same_bits_beside_any_other(run):
    model = run()[0].model
    alone = model.text_memory(["a"])["encoder_hidden_states"]
    for captions in (["b", "a"], ["a", "c", "d"]):
        beside = TextMemory(model.encode_text)(captions)["encoder_hidden_states"]
        assert torch.equal(beside[captions.index("a")], alone[0])


def test_outputs_of_another_precision_are_others(run):
    model = run()[0].model
    plain = model.text_memory(["a"])["encoder_hidden_states"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.text_memory(["a"])["encoder_hidden_states"]
    assert not torch.equal(plain, cast.float())
    assert torch.equal(model.text_memory(["a"])["encoder_hidden_states"], plain)


def test_changing_what_was_given_does_not_change_what_is_kept(run):
    model = run()[0].model
    first = model.text_memory(["a"])["encoder_hidden_states"]
    before = first.clone()
    first.zero_()
    assert torch.equal(model.text_memory(["a"])["encoder_hidden_states"], before)
