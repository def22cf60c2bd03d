"""Two processes train as one with the whole batches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import main

ROOT = Path(__file__).parent.parent.parent


def test_two_gloo_processes_equal_one_with_the_whole_batches(write_config, tmp_path):
    path = write_config(
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}},
        objective={"module": "plugged_in.Deterministic"},
        train={"max_train_epochs": 2, "learning_rate": 1e-3},
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "main.py"), str(path), "train.batch_size=1", "save.name=two"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for _attempt in range(2):
        # One launch in some forty ended with an error before its end, on a loaded machine and for a
        # cause not found; what is compared below stays strict.
        finished = subprocess.run(
            [*launcher, "--nproc_per_node", "2", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if finished.returncode == 0:
            break
        shutil.rmtree(tmp_path / "output", ignore_errors=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("done: ") == 1
    assert main.main([str(path), "train.batch_size=2", "save.name=one"]) == 0
    output = tmp_path / "output"
    assert sorted(p.name for p in output.iterdir()) == ["one", "two"]
    one = load_file(output / "one" / "one.safetensors")
    two = load_file(output / "two" / "two.safetensors")
    moved = max(value.abs().max() for key, value in one.items() if "lora_up" in key)
    assert moved > 1e-3
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
