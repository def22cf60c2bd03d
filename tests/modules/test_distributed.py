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


def train_in_two_processes(path: Path, tmp_path: Path) -> None:
    """Run a config as `two`, each process with batches of one image."""
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


def test_two_gloo_processes_equal_one_with_the_whole_batches(write_config, tmp_path):
    path = write_config(
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}},
        objective={"module": "plugged_in.Deterministic"},
        train={"max_train_epochs": 2, "learning_rate": 1e-3},
    )
    train_in_two_processes(path, tmp_path)
    assert main.main([str(path), "train.batch_size=2", "save.name=one"]) == 0
    output = tmp_path / "output"
    assert sorted(p.name for p in output.iterdir()) == ["one", "two"]
    one = load_file(output / "one" / "one.safetensors")
    two = load_file(output / "two" / "two.safetensors")
    moved = max(value.abs().max() for key, value in one.items() if "lora_up" in key)
    assert moved > 1e-3
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_a_vae_in_two_processes_equals_one(
    write_config, dataset_directory, model_directory, tmp_path
):
    path = write_config(
        model={"trainable": ["vae"]},
        dataset={
            "module": "modules.dataset.ImageDataset",
            "args": {"path": str(dataset_directory), "prompt": ""},
        },
        objective={
            "module": "modules.reconstruction.Reconstruction",
            "args": {"sample_posterior": False},
        },
        optimizer={"module": "torch.optim.SGD"},
        train={"max_train_epochs": 2, "learning_rate": 1e-2},
        sample={"num_images": 2},
    )
    train_in_two_processes(path, tmp_path)
    assert main.main([str(path), "train.batch_size=2", "save.name=one"]) == 0
    file = "diffusion_pytorch_model.safetensors"
    start = load_file(model_directory / "vae" / file)
    one, two = (load_file(tmp_path / "output" / name / name / file) for name in ("one", "two"))
    assert max((one[key] - start[key]).abs().max() for key in one) > 1e-3
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
