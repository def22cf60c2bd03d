"""Settings without effect are named."""

from __future__ import annotations

import pytest

from modules.config import load
from modules.idle_settings import idle_settings

LORA = {"module": "networks.lora.LoRA"}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"save": {"keep_last": 2}},
            "save.keep_last has no effect without save.every_epochs or save.every_steps",
        ),
        (
            {"lr_scheduler": {"name": "cosine", "num_cycles": 3}},
            "lr_scheduler.num_cycles has no effect with cosine; it is for cosine_with_restarts",
        ),
        (
            {"lr_scheduler": {"power": 2.0}},
            "lr_scheduler.power has no effect with constant; it is for polynomial",
        ),
        (
            {"lr_scheduler": {"name": "constant_with_warmup"}},
            "lr_scheduler.name: constant_with_warmup has no warm-up; give warmup_steps",
        ),
        (
            {"networks": {"a": {**LORA, "learning_rate": 1e-5}}},
            "train.learning_rate has no effect: every network has its own",
        ),
        (
            {"networks": {"a": {**LORA, "train": False}, "b": LORA}},
            "networks.a stays as it starts, with train: false and no resume",
        ),
        (
            {"validation": {"split": 0.1, "module": "modules.dataset.ImageDataset"}},
            "validation.module has no effect with split, which is of the dataset",
        ),
        (
            {"sample": {"as_saved": True}, "save": {"dtype": "fp32"}},
            "sample.as_saved has no effect with save.dtype: fp32, which loses nothing",
        ),
        (
            {"model": {"offload_blocks": 2}},
            "model.offload_blocks has no effect below 3: two are on the card at a time",
        ),
        (
            {"ema": {"sample": False}},
            "ema.sample has no effect without a sample or validation section",
        ),
    ],
)
def test_a_setting_without_effect_is_named(write_config, sections, line):
    path = write_config(**{"networks": {"a": LORA}, **sections})
    assert idle_settings(load(path)) == [line]


def test_a_frozen_network_has_no_learning_rate(write_config, tmp_path):
    (tmp_path / "a.safetensors").touch()
    frozen = {
        **LORA,
        "learning_rate": 1e-5,
        "train": False,
        "resume": str(tmp_path / "a.safetensors"),
    }
    lines = idle_settings(load(write_config(networks={"a": frozen, "b": LORA})))
    assert lines == ["networks.a.learning_rate has no effect with train: false"]


def test_a_config_whose_settings_all_count_is_quiet(write_config):
    path = write_config(
        networks={"a": LORA},
        save={"keep_last": 2, "every_steps": 1},
        lr_scheduler={"name": "cosine_with_restarts", "num_cycles": 3, "warmup_steps": 1},
    )
    assert idle_settings(load(path)) == []


def test_what_the_run_itself_reads_of_save_has_an_effect(write_config):
    save = {
        "name": "cats",
        "metadata": {"content": "minimal"},
        "state": False,
        "state_every_minutes": 0,
    }
    assert idle_settings(load(write_config(networks={"a": LORA}, save=save))) == []


def test_held_out_images_are_measured_without_the_average(write_config):
    sections = {"ema": {"sample": False}, "validation": {"split": 0.1}}
    assert idle_settings(load(write_config(networks={"a": LORA}, **sections))) == []
