"""Keys and tokens that a run was given are in none of the files that it writes, nor in its log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import main
from modules.config import load, to_yaml
from modules.errors import ConfigError
from modules.run_identity import _differences
from modules.safetensors_header import read_header
from modules.store import RemoteStore

HUB = "hf_Zk3pQv8LxT1mWn6RyBs4Cd7Ef"
WANDB = "4f1c9e0b7a2d8365f1c9e0b7a2d83654f1c9e0b7"
OWN = "correct-horse-battery"
ACCESS = "user:hunter2-hunter2"
SECRETS = (HUB, WANDB, OWN, "hunter2-hunter2")


class Watched(torch.optim.SGD):
    """An optimizer that reports to a service, for which it takes a key and an address."""

    def __init__(self, params, lr=1e-3, api_key="", service="", note=""):
        self.given = api_key, service, note
        super().__init__(params, lr=lr)


@pytest.fixture
def config(write_config, monkeypatch) -> Path:
    """A config with secrets of every kind, as values and through the environment."""
    monkeypatch.setenv("HF_TOKEN", HUB)
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("WANDB_MODE", "offline")
    service = f"https://{ACCESS}@example.org/v1"
    given = {"api_key": OWN, "service": service, "note": "token ${oc.env:HF_TOKEN}"}
    return write_config(
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 1}}},
        optimizer={"module": f"{__name__}.Watched", "args": given},
        loggers={"tensorboard": {"comment": "${oc.env:WANDB_API_KEY}"}},
        save={"state": True},
        sample={"prompts": ["a cat"], "width": 16, "height": 16, "num_inference_steps": 1},
    )


def leaks(folder: Path) -> list[str]:
    """The files in which one of the secrets stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [str(f) for f in files if any(s.encode() in f.read_bytes() for s in SECRETS)]


def test_no_file_of_a_run_has_a_secret(config, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    assert main.main([str(config)]) == 0
    folder = tmp_path / "output" / "run"
    assert leaks(folder) == []
    told = caplog.text + "".join(capsys.readouterr())
    assert not any(secret in told for secret in SECRETS)
    kept = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "api_key: '***'" in kept
    assert "https://***@example.org/v1" in kept
    assert "api_key=***" in read_header(folder / "run.safetensors").metadata["ss_optimizer"]


def test_a_run_goes_on_with_its_secrets_given_again(config, tmp_path, capsys):
    assert main.main([str(config), "train.max_train_steps=2"]) == 0
    folder = tmp_path / "output" / "run"
    written = load_error(folder / "config.yaml")
    assert "optimizer.args.api_key" in written
    assert "*** stands for a secret that is kept out of files; set it again" in written
    more = ["train.max_train_steps=3", "train.resume=auto", "train.accept_changes=[train]"]
    assert main.main([str(config), *more]) == 0
    assert leaks(folder) == []
    assert not any(secret in "".join(capsys.readouterr()) for secret in SECRETS)


def load_error(path: Path) -> str:
    with pytest.raises(ConfigError) as told:
        load(path)
    return str(told.value)


def test_a_config_without_secrets_is_written_as_it_is(write_config):
    lora = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 1}}}
    text = to_yaml(load(write_config(networks=lora)))
    assert "***" not in text


def test_credentials_of_an_address_are_told_to_nobody():
    with pytest.raises(ValueError, match=r"nowhere://\*\*\*@bucket") as told:
        RemoteStore(f"nowhere://{ACCESS}@bucket/data")
    assert "hunter2" not in str(told.value)


def test_masked_values_are_no_change_of_a_run():
    assert list(_differences({"a": "***"}, {"a": "***"})) == []
