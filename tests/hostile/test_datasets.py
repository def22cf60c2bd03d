"""One hostile file in a dataset ends its reading in a line that names it, and no code runs."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from hostile.datasets import HARMLESS, bad_files

import main
from modules import npy
from modules.dataset import LatentDataset
from modules.dataset_files import read_array, read_arrays, read_geometry
from modules.store import LocalStore

ARGUMENTS = {"mask": True, "extras": {"control": "image", "pfg": "npz"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset with all kinds of files; tests copy it."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    return tiny.save_dataset(folder, {(32, 32): 4}, side_inputs=True)


@pytest.fixture
def replace(whole, tmp_path) -> Callable[[str, bytes], Path]:
    """Copy the dataset with one file replaced."""

    def replace(file: str, content: bytes) -> Path:
        folder = shutil.copytree(whole, tmp_path / "data")
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
        return folder

    return replace


def read_all(folder: Path) -> None:
    """Do with a dataset what a run does: open it, check it, read every image."""
    dataset = LatentDataset(str(folder), **ARGUMENTS)
    dataset.check_latent_shapes(4, 4)
    for number in range(len(dataset)):
        assert dataset[number].latents is not None


@pytest.mark.parametrize("name", bad_files(Path("canary")))
def test_a_bad_file_is_named(name, replace, tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "MOST_BYTES", 4 << 20)  # so that a small bomb is one
    canary = tmp_path / "canary"
    file, content = bad_files(canary)[name]
    folder = replace(file, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}|{file}") as told:
        read_all(folder)
    assert Path(file).stem in str(told.value) or file == "buckets.json"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert not canary.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_odd_file_does_no_harm(name, replace, tmp_path):
    folder = replace(*HARMLESS[name])
    read_all(folder)
    read_geometry(LocalStore(folder), ["image000", "image001"])
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("content", [b"[1]\n{}\n", b"[" * 100_000 + b"\n{}\n", b"\xff\n{}\n"])
def test_broken_lines_are_named(content, replace):
    folder = replace("images.jsonl", content)
    with pytest.raises(ValueError, match=r"images\.jsonl, line 1: is not a JSON object"):
        read_geometry(LocalStore(folder), ["image000"])


@pytest.mark.parametrize("name", ["features are a pickle", "a caption is Latin-1"])
def test_a_run_ends_in_one_line(name, replace, tmp_path, write_config, capsys):
    canary = tmp_path / "canary"
    file, content = bad_files(canary)[name]
    config = write_config(
        dataset={"args": {"path": str(replace(file, content)), **ARGUMENTS}},
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 1}}},
    )
    assert main.main([str(config)]) in (1, 2)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert file in told.splitlines()[-1]
    assert not canary.exists()


@pytest.mark.parametrize("read", [read_array, read_arrays])
def test_an_array_that_unpacks_to_too_much_is_not_unpacked(read, tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "MOST_BYTES", 4 << 20)
    path = tmp_path / "bomb.npz"
    path.write_bytes(bad_files(tmp_path)["features are a bomb"][1])
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.npz: can't be read \(an array of 0\.0 GB"):
        read(path)
