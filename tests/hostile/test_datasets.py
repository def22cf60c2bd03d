"""A run over a dataset with one hostile file ends in a line that names it, and no code runs."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
import tiny
from hostile.datasets import HARMLESS, bad_files

import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset with all kinds of files; tests copy it."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    return tiny.save_dataset(folder, {(32, 32): 4}, side_inputs=True)


@pytest.fixture
def run(whole, tmp_path, write_config):
    """Train on a copy of the dataset in which a file is replaced; returns the exit status."""

    def run(file: str, content: bytes) -> int:
        folder = shutil.copytree(whole, tmp_path / "data")
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
        extras = {"control": "image", "pfg": "npz"}
        given = {"path": str(folder), "mask": True, "extras": extras, "num_workers": 0}
        del given["num_workers"]
        config = write_config(
            dataset={"args": given},
            networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 1}}},
            train={"max_train_steps": 3},
        )
        return main.main([str(config)])

    return run


@pytest.mark.parametrize("name", bad_files(Path("canary")))
def test_a_bad_file_ends_the_run_in_one_line(name, run, tmp_path, capsys):
    canary = tmp_path / "canary"
    file, content = bad_files(canary)[name]
    before = {path.name for path in tmp_path.iterdir()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = run(file, content)
    told = capsys.readouterr().err
    if file == "images.jsonl" and status == 0:
        pytest.fail("a broken images.jsonl went unnoticed")
    assert status in (1, 2)
    assert "Traceback" not in told
    assert Path(file).name in told or Path(file).stem in told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 700 << 10  # KiB
    assert not canary.exists()
    assert {p.name for p in tmp_path.iterdir()} - before <= {"data", "run.yaml", "output"}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_odd_file_does_no_harm(name, run, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}
    assert run(*HARMLESS[name]) == 0
    assert {p.name for p in tmp_path.iterdir()} - before == {"data", "run.yaml", "output"}
