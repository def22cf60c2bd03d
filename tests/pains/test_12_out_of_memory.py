"""Row 12: "out of memory", "how much VRAM do I need?"."""

from __future__ import annotations

import pytest
import torch

import main
from modules.models.base import DiffusionModel

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}


def test_check_tells_the_peak_and_a_table(write_config, capsys):
    path = write_config(networks=LORA, train={"batch_size": 4})
    assert main.main([str(path), "--check"]) == 0
    lines = [line[11:] for line in capsys.readouterr().out.splitlines() if "memory  " in line]
    assert lines[0].startswith("about ")
    assert "of a card at most, in " in lines[0]
    assert lines[2].startswith("GiB by batch size")
    assert [line for line in lines if line.startswith("no ") and "[" in line]


@pytest.mark.slow
def test_advice_saves_and_begins_with_what_is_free(write_config, tmp_path):
    from functools import partial

    from real_folders import save_configs, save_latents

    from modules.config import load
    from modules.memory_table import memory_lines
    from modules.run_parts import load_parts

    model = save_configs("sd1", tmp_path / "sd1")
    data = save_latents(tmp_path / "data", size=512)
    config = load(
        write_config(
            model={"path": str(model), "trainable": ["unet", "text_encoders"]},
            dataset={"args": {"path": str(data)}},
            train={"batch_size": 4, "mixed_precision": "no"},
        )
    )
    reload = partial(load_parts, weights=False)
    advice = memory_lines(config, reload(config), reload)[9:]
    assert [line.partition(":")[0] for line in advice] == [
        "train.mixed_precision",
        "optimizer.module",
        "train.gradient_checkpointing",
        "train.batch_size",
        "text encoders not trained",
        "a LoRA of rank 16 in place of the base",
    ]


def test_a_full_card_ends_the_run_with_the_table(write_config, capsys, monkeypatch):
    denoise = DiffusionModel.denoise

    def fill_the_card(self, inputs):
        if inputs.sample.is_meta:
            return denoise(self, inputs)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(DiffusionModel, "denoise", fill_the_card)
    assert main.main([str(write_config(networks=LORA))]) == 1
    told = capsys.readouterr().err
    assert "the card's memory is too small: CUDA out of memory" in told
    assert "of a card at most" in told
    assert "GiB by batch size" in told
    assert "Traceback" not in told
