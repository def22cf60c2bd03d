"""Runs over a base whose frozen weights are stored in 8 or 4 bits."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from interrupted_runs import LORA, assemble, interrupted
from safetensors import safe_open
from safetensors.torch import load_file

import main
from modules.config import load
from modules.errors import ConfigError
from modules.models.quantized import QuantizedLayer
from modules.receipt_keys import BASE, PACKAGES
from modules.trainer import Trainer

BOTH = ["unet", "text_encoders"]
ADAPTERS = {
    "lora": {"module": "networks.lora.LoRA", "args": {"rank": 4, "targets": BOTH}},
    "locon": {"module": "networks.lora.LoRA", "args": {"rank": 4, "conv_rank": 2}},
    "loha": {"module": "networks.loha.LoHa", "args": {"rank": 2, "conv_rank": 2}},
    "lokr": {"module": "networks.lokr.LoKr", "args": {"rank": 2}},
    "dora of rows": {"module": "networks.lora.LoRA", "args": {"rank": 4, "dora": "output"}},
    "dora of columns": {"module": "networks.lora.LoRA", "args": {"rank": 4, "dora": "input"}},
}
SAMPLE = {"prompts": ["a red cat"], "width": 32, "height": 32, "num_inference_steps": 2}


def stored_layers(trainer: Trainer) -> list[QuantizedLayer]:
    modules = trainer.model.components().values()
    return [part for m in modules for part in m.modules() if isinstance(part, QuantizedLayer)]


def losses(trainer: Trainer) -> list[float]:
    lines = (trainer.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [value["loss"] for value in map(json.loads, lines) if "loss" in value]


@pytest.mark.parametrize("name", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_learns_beside_a_stored_base(write_config, adapter, name):
    path = write_config(
        model={"quantize": name},
        networks={"own": ADAPTERS[adapter]},
        objective={"module": "plugged_in.Deterministic"},
        train={"max_train_steps": 12, "learning_rate": 5e-3, "mixed_precision": "bf16"},
    )
    trainer = assemble(path)
    layers = stored_layers(trainer)
    assert len(layers) > 60
    codes = [layer.codes.clone() for layer in layers]
    trainer.train()
    assert all(torch.equal(a, b.codes) for a, b in zip(codes, layers, strict=True))
    measured = losses(trainer)
    assert sum(measured[-4:]) < sum(measured[:4])
    assert load_file(trainer.directory / "run.safetensors")


def test_a_run_of_one_adapter_is_near_to_that_over_the_whole_base(write_config):
    path = write_config(
        networks=LORA,
        objective={"module": "plugged_in.Deterministic"},
        train={"max_train_steps": 6},
    )
    found = {}
    for name in ("null", "int8"):
        trainer = assemble(path, f"model.quantize={name}", f"save.name={name}")
        trainer.train()
        found[name] = torch.tensor(losses(trainer))
    assert not torch.equal(found["null"], found["int8"])
    assert torch.allclose(found["null"], found["int8"], rtol=0.01)


def test_the_receipt_names_the_file_that_was_read_and_what_stored_it(write_config):
    path = write_config(networks=LORA)
    told = {}
    for name in ("null", "nf4"):
        trainer = assemble(path, f"model.quantize={name}", f"save.name={name}")
        trainer.train()
        written = trainer.directory / f"{trainer.name}.safetensors"
        with safe_open(written, framework="pt") as file:
            told[name] = file.metadata()
    assert told["nf4"][BASE] == told["null"][BASE]
    assert "bitsandbytes" in json.loads(told["nf4"][PACKAGES])
    assert "bitsandbytes" not in json.loads(told["null"][PACKAGES])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rehearsal_samples_and_validation_run_over_it(write_config, checkpointing, caplog):
    path = write_config(
        model={"quantize": "int8"},
        networks={"own": ADAPTERS["lora"]},
        train={"rehearse": True, "gradient_checkpointing": checkpointing},
        sample=SAMPLE,
        validation={"split": 0.25},
    )
    caplog.set_level("INFO")
    trainer = assemble(path)
    trainer.train()
    assert "verified and loaded again" in caplog.text
    assert re.search(r"model.quantize: \d+ layers of UNet2DConditionModel in int8", caplog.text)
    assert list(trainer.directory.rglob("*.png"))


def test_a_resumed_run_is_the_whole_run(write_config):
    path = write_config(
        model={"quantize": "fp8"}, networks=LORA, train={"max_train_steps": 4}, sample=SAMPLE
    )
    whole = assemble(path, "save.name=whole")
    whole.train()
    begun = interrupted(path, 2)
    state = f"train.resume={begun.directory}"
    with pytest.raises(ConfigError, match=r"model.quantize: 'fp8' then, 'int8' now"):
        assemble(path, state, "model.quantize=int8")
    resumed = assemble(path, state)
    resumed.train()
    ended, wanted = (load_file(t.directory / f"{t.name}.safetensors") for t in (resumed, whole))
    assert all(torch.equal(ended[key], value) for key, value in wanted.items())


def test_what_is_merged_is_stored_with_the_base(write_config):
    path = write_config(networks=LORA, train={"max_train_steps": 3, "learning_rate": 0.1})
    first = assemble(path)
    first.train()
    file = first.directory / "run.safetensors"
    merged = {**LORA["lora"], "train": False, "merge": True, "resume": str(file)}
    path = write_config(model={"quantize": "int8"}, networks={"old": merged, **LORA})
    layers = {}
    for name in ("null", "int8"):
        unet = assemble(path, f"model.quantize={name}").model.denoiser
        layers[name] = unet.get_submodule("down_blocks.0.attentions.0.proj_in").weight
    off = (layers["int8"] - layers["null"]).norm() / layers["null"].norm()
    assert off < 0.01


def test_nothing_of_the_base_is_trained_beside_it(write_config):
    path = write_config(model={"quantize": "int8", "trainable": ["unet"]})
    with pytest.raises(ConfigError, match=r"model.quantize.*model.trainable names unet"):
        load(path)


def test_a_missing_package_is_named_with_its_pip_line(write_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    path = write_config(model={"quantize": "nf4"}, networks=LORA)
    assert main.main([str(path)]) == 2
    said = capsys.readouterr()
    assert "model.quantize: nf4 is computed by bitsandbytes" in said.out + said.err
    assert "pip install bitsandbytes" in said.out + said.err
