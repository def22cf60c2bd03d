"""A dataset that was changed under the same names, and one that is the same elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from interrupted_runs import LORA, assemble, interrupted

from modules.dataset_contents import DatasetContents
from modules.errors import ConfigError
from modules.manifest import FILE


@pytest.fixture
def data(tmp_path) -> Path:
    return tiny.save_dataset(tmp_path / "data", {(32, 32): 4})


@pytest.fixture
def path(write_config, data) -> Path:
    return write_config(
        networks=LORA, dataset={"args": {"path": str(data)}}, train={"max_train_steps": 4}
    )


def edit_caption(data: Path) -> str:
    (data / "captions" / "image001.caption").write_text("another caption", encoding="utf-8")
    return "captions/image001.caption"


def edit_latents(data: Path) -> str:
    file = data / "latents" / "image002.npy"
    np.save(file, np.load(file) + 1)
    return "latents/image002.npy"


@pytest.mark.parametrize("edit", [edit_caption, edit_latents])
def test_an_edited_file_is_named_and_can_be_accepted(path, data, edit):
    interrupted(path, 2)
    name = edit(data)
    message = (
        r"dataset\.files: '9 files \((?P<then>\w{12})\)' then, '9 files \((?!(?P=then))\w{12}\)' "
        rf"now \(1 changed: {name}\)"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        assemble(path, "train.resume=auto")
    assert "'train.accept_changes=[dataset.files]'" in str(caught.value)
    for key in ("dataset.files", "dataset"):
        assert assemble(path, "train.resume=auto", f"train.accept_changes=[{key}]").step == 2
    trainer = assemble(path, "train.resume=auto", "train.accept_changes=[dataset.files]")
    trainer.train()
    assert f"changed: {name}" not in (trainer.directory / FILE).read_text()
    assert trainer.step == 4


def test_an_edited_class_image_is_named(write_config, data, tmp_path):
    prior = tiny.save_dataset(tmp_path / "class", {(32, 32): 2}, seed=5)
    path = write_config(
        networks=LORA,
        dataset={"args": {"path": str(data)}},
        prior={"args": {"path": str(prior)}},
        train={"max_train_steps": 4},
    )
    interrupted(path, 2)
    edit_caption(prior)
    with pytest.raises(ConfigError, match=r"1 changed: prior captions/image001\.caption"):
        assemble(path, "train.resume=auto")


def test_an_edited_picture_of_a_dataset_without_latents(write_config, data):
    from PIL import Image

    path = write_config(
        networks=LORA,
        dataset={"module": "modules.dataset.ImageDataset", "args": {"path": str(data)}},
        train={"max_train_steps": 4},
    )
    interrupted(path, 2)
    file = next((data / "images").glob("image003.*"))
    Image.open(file).rotate(180).save(file)
    with pytest.raises(ConfigError, match=rf"1 changed: images/{file.name}"):
        assemble(path, "train.resume=auto")


def test_a_copy_elsewhere_with_other_times_is_the_same(path, data, tmp_path, write_config):
    whole = assemble(path, "save.name=whole")
    whole.train()
    interrupted(path, 2)
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    for number, file in enumerate(sorted(copy.rglob("*"))):
        os.utime(file, (1e9 + number, 1e9 + number))
    shutil.rmtree(data)
    trainer = assemble(
        path,
        "train.resume=auto",
        f"dataset.args.path={copy}",
        "train.accept_changes=[dataset.args.path]",
    )
    trainer.train()
    one, other = ((t.directory / f"{t.name}.safetensors") for t in (whole, trainer))
    from safetensors.torch import load_file

    ended = load_file(one)
    assert all(torch.equal(ended[key], value) for key, value in load_file(other).items())


def test_a_state_without_hashes_says_so(path, data, monkeypatch, caplog):
    monkeypatch.setattr(DatasetContents, "total", lambda self, seconds=None: None)
    interrupted(path, 2)
    monkeypatch.undo()
    edit_caption(data)
    with caplog.at_level(logging.WARNING):
        assert assemble(path, "train.resume=auto").step == 2
    assert "before the dataset's files were hashed" in caplog.text


def test_a_missing_manifest_costs_the_names_alone(path, data):
    trainer = interrupted(path, 2)
    (trainer.directory / FILE).unlink()
    edit_caption(data)
    with pytest.raises(ConfigError, match=r"dataset\.files: '9 files .* now\n"):
        assemble(path, "train.resume=auto")
