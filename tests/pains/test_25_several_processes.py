"""Several processes: images twice, the horizon of one of them, hanging at a save or in caching."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main

FOLDER = Path(__file__).parent
ROOT = Path(main.__file__).parent
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}


def launch(script, *arguments):
    """Run a script of this folder in two processes of gloo."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script), *arguments),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batches(write_config, tmp_path):
    """In weights, rates, steps, epochs, and files, which process 0 writes beside the other."""
    path = write_config(
        networks=LORA,
        objective={"module": "plugged_in.Deterministic"},
        lr_scheduler={"name": "cosine"},
        train={"max_train_epochs": 2, "learning_rate": 1e-3},
        save={"every_steps": 2},
    )
    given = (str(path), "train.batch_size=1", "save.name=two")
    finished = launch(FOLDER / "launched_main.py", *given)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert main.main([str(path), "train.batch_size=2", "save.name=one"]) == 0
    folders = [tmp_path / "output" / name for name in ("one", "two")]
    one, two = (load_file(folder / f"{folder.name}.safetensors") for folder in folders)
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert max(tensor.abs().max() for key, tensor in one.items() if "lora_up" in key) > 1e-3
    curves = [
        [
            (line["step"], line["epoch"], line["learning_rate/lora.unet"])
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        ]
        for folder in folders
    ]
    assert curves[0] == curves[1]
    assert curves[0][-1][:2] == (10, 2)
    names = [sorted(p.name.replace(f.name, "") for p in f.iterdir()) for f in folders]
    assert names[0] == names[1]


@pytest.mark.slow
def test_each_image_once_an_epoch_in_one_process(dataset_directory, tmp_path):
    (tmp_path / "ranks").mkdir()
    data = _named(dataset_directory, tmp_path / "data")
    finished = launch(ROOT / "tests" / "ledger.py", str(data), str(tmp_path / "ranks"), "2")
    assert finished.returncode == 0, finished.stderr[-3000:]
    ranks = [
        [json.loads(line) for line in (tmp_path / "ranks" / f"{rank}.jsonl").open()]
        for rank in (0, 1)
    ]
    shapes = [[line["shape"] for line in rank] for rank in ranks]
    assert shapes[0] == shapes[1]  # the same bucket at the same step
    for epoch in (0, 1):
        seen = Counter(
            name
            for line in (*ranks[0], *ranks[1])
            if line["epoch"] == epoch
            for name in line["images"]
        )
        assert len(seen) == 8
        assert set(seen.values()) == {1}


@pytest.mark.slow
def test_who_waits_in_vain_says_for_whom(tmp_path):
    said = launch(ROOT / "tests" / "meeting_processes.py", "1").stdout
    assert re.search(r"process 1 of 2 waits behind prepare\.0 .*Ranks 1 failed to pass", said)


def _named(source, target):
    """The dataset with each image's name as its caption."""
    import shutil

    shutil.copytree(source, target)
    for file in (target / "captions").iterdir():
        file.write_text(file.stem, encoding="utf-8")
    return target
