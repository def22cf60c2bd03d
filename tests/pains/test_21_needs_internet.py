"""Training wants the internet, for CLIP's tokenizer or for a config that it could know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupted_runs import LORA

import main
from modules import models
from modules.models.full_file import save_single_file

ROOT = Path(main.__file__).parent
LAUNCHED = Path(__file__).parent / "launched_main.py"


@pytest.fixture
def run(tmp_path):
    """Run main.py where nothing forbids the network; returns it and whom it wanted to reach."""

    def launch(path, *overrides):
        sockets = tmp_path / "sockets"
        forbidding = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE")
        environment = {k: v for k, v in os.environ.items() if k not in forbidding}
        finished = subprocess.run(
            [sys.executable, str(LAUNCHED), str(path), *overrides],
            env={
                **environment,
                "SOCKETS": str(sockets),
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
                "HF_HOME": str(tmp_path / "hub"),
                "HF_ENDPOINT": "http://hub.invalid",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        return finished, sockets.read_text().split() if sockets.exists() else []

    return launch


@pytest.mark.slow
@pytest.mark.parametrize("form", ["directory", "single file"])
def test_a_model_that_is_here_needs_no_other_machine(
    write_config, model_directory, tmp_path, run, form
):
    path = model_directory
    if form == "single file":
        path = tmp_path / "base.safetensors"
        save_single_file(models.load(str(model_directory)), path, dtype=torch.float16)
    config = write_config(networks=LORA, model={"path": str(path)}, train={"max_train_steps": 1})
    finished, reached = run(config)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert (tmp_path / "output" / "run" / "run.safetensors").is_file()
    assert reached == []


@pytest.mark.slow
def test_offline_a_model_of_the_hub_is_not_asked_for(write_config, run):
    config = write_config(networks=LORA, model={"path": "someone/no-such-model"})
    finished, reached = run(config, "model.offline=true")
    assert finished.returncode == 2
    assert finished.stderr.startswith("model: someone/no-such-model: there is no such directory")
    assert reached == []
    finished, reached = run(config)
    assert finished.returncode == 2
    assert "hub.invalid" in reached  # so it would be seen
