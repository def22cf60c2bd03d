"""`tools/reproduce.py` writes the YAML back and tells what is no longer what it was."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import save_file

from modules import package_versions
from modules.config import load
from modules.safetensors_header import read_header
from modules.trainer import Trainer
from tools.reproduce import main, reproduce

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


@pytest.fixture
def material(tmp_path):
    """A base model and a dataset that a test may change."""
    tiny.save_sd(tmp_path / "base")
    tiny.save_dataset(tmp_path / "cats", {(32, 32): 3})
    return tmp_path


@pytest.fixture
def train(material, write_config, monkeypatch):
    """Train on them by paths within the current directory, as people write them."""
    monkeypatch.chdir(material)

    def run(*overrides):
        dataset = {"args": {"path": "cats"}}
        path = write_config(
            networks=LORA, model={"path": "base"}, dataset=dataset, save={"directory": "output"}
        )
        trainer = Trainer.from_config(load(path, *overrides))
        trainer.train()
        return trainer.directory / "run.safetensors"

    return run


def test_nothing_differs_right_after_and_the_yaml_makes_the_same(train, material, capsys):
    file = train("train.seed=5")
    assert main([str(file), "-o", "again.yaml"]) == 0
    out = capsys.readouterr().out
    assert "wrote again.yaml\nnothing differs\n" in out
    assert "device: it was 1 x cpu" in out
    trainer = Trainer.from_config(load("again.yaml"))
    trainer.train()
    first, second = (read_header(f).metadata for f in (file, trainer.directory / file.name))
    assert first["sshs_model_hash"] == second["sshs_model_hash"]


def test_a_file_is_never_overwritten(train, material, capsys):
    file = train()
    (material / "again.yaml").write_text("mine", encoding="utf-8")
    assert main([str(file), "-o", "again.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (material / "again.yaml").read_text(encoding="utf-8") == "mine"


def caption(material, text="a cow"):
    (material / "cats" / "captions" / "image001.caption").write_text(text, encoding="utf-8")


def remove(material):
    (material / "cats" / "latents" / "image002.npy").unlink()


def add(material):
    cats = material / "cats"
    for kind, ending in (("latents", ".npy"), ("captions", ".caption")):
        shutil.copy(cats / kind / f"image000{ending}", cats / kind / f"new{ending}")
    index = json.loads((cats / "buckets.json").read_text(encoding="utf-8"))
    index["(32, 32)"].append("new")
    (cats / "buckets.json").write_text(json.dumps(index), encoding="utf-8")


def base(material):
    tiny.save_sd(material / "base", seed=1)


def move_base(material):
    (material / "base").rename(material / "elsewhere")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (caption, ["dataset: 1 of 7 files changed: cats/captions/image001.caption"]),
        (remove, ["dataset: 1 of 7 files missing: cats/latents/image002.npy"]),
        (
            add,
            [
                "dataset: 1 of 7 files changed: cats/buckets.json",
                "dataset: 2 files are new: cats/captions/new.caption, cats/latents/new.npy",
            ],
        ),
        (base, ["model.path: base has changed"]),
        (move_base, ["model.path: base is not here"]),
    ],
)
def test_what_differs_is_named(train, material, change, expected, capsys):
    file = train()
    change(material)
    assert reproduce(file).differing == expected
    assert main([str(file)]) == 1
    assert f"differs: {expected[0]}\n" in capsys.readouterr().out


def test_without_the_list_in_it_that_of_the_run_serves(train, material, monkeypatch):
    monkeypatch.setattr("modules.manifest.MOST_EMBEDDED", 0)
    file = train()
    caption(material)
    assert reproduce(file).differing == [
        "dataset: 1 of 7 files changed: cats/captions/image001.caption"
    ]
    moved = file.rename(material / "moved.safetensors")
    found = reproduce(moved)
    assert found.differing == ["dataset: its files are not those of the run"]
    assert "dataset: which of its files differ; there is no list of them" in found.unknown
    caption(material, "a blue dog")  # as it was
    assert reproduce(moved).is_same


def test_a_list_of_another_run_is_none(train, material, monkeypatch):
    monkeypatch.setattr("modules.manifest.MOST_EMBEDDED", 0)
    file = train()
    manifest = file.parent / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").replace("image001", "image009")
    manifest.write_text(lines, encoding="utf-8")
    assert reproduce(file).is_same


def test_packages_and_our_own_version(train, monkeypatch):
    monkeypatch.setattr(package_versions, "own_commit", lambda: "abc-dirty")
    file = train()
    assert "sd-trainer: had changes that no commit holds" in reproduce(file).unknown
    monkeypatch.setattr(package_versions, "own_commit", lambda: None)
    assert any("abc-dirty" in line for line in reproduce(file).unknown)
    monkeypatch.setattr(package_versions, "own_commit", lambda: "def")
    monkeypatch.setattr(package_versions.metadata, "version", lambda name: "0.1")
    found = reproduce(file).differing
    assert "sd-trainer: abc-dirty then, def now" in found
    assert f"torch: {torch.__version__} then, 0.1 now" in found


def test_a_later_part_of_an_adapter_is_compared_too(train):
    first = train()
    file = train(f"networks.lora.resume={first}")
    assert reproduce(file).is_same
    first.unlink()
    assert reproduce(file).differing == [f"networks.lora.resume: {first} is not here"]


def test_what_was_masked_is_to_be_filled_in(train):
    file = train("loggers.tensorboard.api_key=secretsecret")
    found = reproduce(file)
    assert "secretsecret" not in found.config
    assert "loggers.tensorboard.api_key: was left out of the file; fill it in" in found.unknown


def test_directories_have_a_receipt_too(material, write_config, monkeypatch):
    monkeypatch.chdir(material)
    controls = tiny.save_dataset(material / "guided", {(32, 32): 2}, side_inputs=True)
    path = write_config(
        networks={"control": {"module": "networks.controlnet.ControlNet"}},
        model={"path": "base", "trainable": ["unet.mid_block"]},
        dataset={"args": {"path": "guided", "extras": {"control": "image"}}},
        save={"directory": "output"},
    )
    trainer = Trainer.from_config(load(path))
    trainer.train()
    for folder in (trainer.directory / "run", trainer.directory / "run-control"):
        assert reproduce(folder).is_same, folder
    (controls / "control" / "image001.png").unlink()
    for folder in (trainer.directory / "run", trainer.directory / "run-control"):
        (line,) = reproduce(folder).differing
        assert line == "dataset: 1 of 7 files missing: guided/control/image001.png", folder


def test_a_hypernetwork_has_a_receipt_too(material, write_config, monkeypatch):
    monkeypatch.chdir(material)
    path = write_config(
        networks={"style": {"module": "networks.hypernetwork.Hypernetwork"}},
        model={"path": "base"},
        dataset={"args": {"path": "cats"}},
        save={"directory": "output"},
    )
    trainer = Trainer.from_config(load(path))
    trainer.train()
    assert reproduce(trainer.directory / "run.pt").is_same
    next(material.glob("cats/captions/*")).write_text("another", encoding="utf-8")
    assert len(reproduce(trainer.directory / "run.pt").differing) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.safetensors", None, "no such file"),
        ("a.pt", {}, "holds no receipt; take the .safetensors"),
        ("folder", None, "has neither sd_trainer.json nor a .safetensors"),
        ("other.safetensors", {"ss_steps": "1"}, "has no receipt; it was written by another"),
    ],
)
def test_files_without_a_receipt(tmp_path, capsys, name, content, words):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"pfg_linear.weight": torch.zeros(1)}, path)
    elif isinstance(content, dict):
        save_file({"a": torch.zeros(1)}, path, metadata=content)
    elif content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    assert main([str(path), "-o", str(tmp_path / "a.yaml")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "a.yaml").exists()
