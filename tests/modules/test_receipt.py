"""The receipt: what made a file, enough to make it again, and nothing that is secret."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from contextlib import closing
from pathlib import Path

import tiny
import torch

from modules import receipt as receipt_module
from modules.config import load, to_yaml
from modules.dataset import LatentDataset
from modules.dataset_contents import DatasetContents
from modules.file_hashes import FileHashes, hash_weights
from modules.manifest import FILE, read_manifest, unpack_manifest
from modules.receipt_keys import (
    BASE,
    CONFIG,
    DATASET,
    DEVICES,
    FILES,
    MANIFEST,
    PACKAGES,
    UNREAD,
    WEIGHTS,
)
from modules.safetensors_header import read_header
from modules.trainer import Trainer

LORA = {
    "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["unet.mid_block"]}}
}


def train(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    trainer.train()
    return trainer


def receipt_of(trainer, name="run.safetensors"):
    return read_header(trainer.directory / name).metadata


def test_the_config_of_a_file_is_that_of_its_run(write_config, tmp_path):
    trainer = train(write_config(networks=LORA), "train.seed=3")
    text = receipt_of(trainer)[CONFIG]
    assert text == (trainer.directory / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert to_yaml(load(tmp_path / "again.yaml")) == text


def test_a_run_made_again_from_its_file_has_the_same_weights(write_config, tmp_path):
    path = write_config(networks=LORA, dataset={"shuffle": True}, train={"max_train_steps": 3})
    first = train(path)
    (tmp_path / "again.yaml").write_text(receipt_of(first)[CONFIG], encoding="utf-8")
    second = train(tmp_path / "again.yaml")
    a, b = (receipt_of(trainer) for trainer in (first, second))
    assert first.directory != second.directory
    assert a["sshs_model_hash"] == b["sshs_model_hash"]  # every byte of the tensors
    for key in (BASE, DATASET, MANIFEST, PACKAGES, DEVICES):
        assert a[key] == b[key], key


def test_weights_that_a_run_began_with(write_config, model_directory):
    path = write_config(networks=LORA)
    first = train(path).directory / "run.safetensors"
    vae = str(model_directory / "vae")
    found = receipt_of(train(path, f"networks.lora.resume={first}", f"model.vae={vae}"))
    with closing(FileHashes()) as hashes:
        expected = {
            "model.path": hash_weights(model_directory, hashes),
            "model.vae": hash_weights(Path(vae), hashes),
            "networks.lora.resume": hashes.sha256(first),
        }
    assert json.loads(found[WEIGHTS]) == expected
    assert found[BASE] == expected["model.path"]
    assert json.loads(found[PACKAGES])["torch"] == torch.__version__
    assert found[DEVICES] == "1 x cpu"


def test_the_manifest_is_in_the_folder_and_if_small_in_the_file(write_config, monkeypatch):
    trainer = train(write_config(networks=LORA))
    found = receipt_of(trainer)
    lines = (trainer.directory / FILE).read_bytes()
    assert unpack_manifest(found[MANIFEST]) == lines
    listed = list(read_manifest(lines.splitlines()))
    assert len(listed) == int(found[FILES]) == 1 + 8 + 8  # buckets.json, captions, latents
    monkeypatch.setattr("modules.manifest.MOST_EMBEDDED", 16)
    large = train(write_config(networks=LORA))
    assert MANIFEST not in receipt_of(large)
    assert receipt_of(large)[DATASET] == found[DATASET]
    assert (large.directory / FILE).read_bytes() == lines


def test_data_of_a_prior_is_listed_too(write_config, dataset_directory, tmp_path):
    other = tiny.save_dataset(tmp_path / "class", {(32, 32): 2}, seed=5)
    trainer = train(write_config(networks=LORA, prior={"args": {"path": str(other)}}))
    found = receipt_of(trainer)
    listed = read_manifest(unpack_manifest(found[MANIFEST]).splitlines())
    sections = [each.section for each in listed]
    assert sections.count("prior") == 1 + 2 + 2
    assert found["ss_num_reg_images"] == "2"


def test_secrets_are_in_no_file(write_config, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecretofmine000000")
    trainer = train(
        write_config(
            networks=LORA,
            model={"trainable": ["unet.mid_block"]},
            loggers={"tensorboard": {"api_key": "abc-secret-xyz"}},
            sample={"prompts": ["hf_thisisasecretofmine000000"], "num_inference_steps": 1},
        )
    )
    folder = trainer.directory
    for file in (folder / "run-lora.safetensors", folder / "run" / "sd_trainer.json"):
        content = file.read_bytes()
        assert b"abc-secret-xyz" not in content, file
        assert b"hf_thisisasecretofmine000000" not in content, file
        assert b"***" in content, file


def test_a_save_waits_for_the_hashes(write_config, monkeypatch, caplog):
    allowed = threading.Event()
    dataset_facts = receipt_module.dataset_facts

    def slow(dataset):
        assert allowed.wait(60)
        return dataset_facts(dataset)

    monkeypatch.setattr(receipt_module, "dataset_facts", slow)
    monkeypatch.setattr(receipt_module, "_SAID_AFTER", 0.05)
    monkeypatch.setattr(receipt_module, "_PATIENCE", 0.1)
    caplog.set_level(logging.INFO)
    trainer = Trainer.from_config(load(write_config(networks=LORA)))
    trainer.saver.save_if_due(trainer, last=True)
    assert "ss_tag_frequency" not in receipt_of(trainer)
    assert receipt_of(trainer)[CONFIG]
    assert "this save does not name it" in caplog.text
    allowed.set()
    trainer.metadata.gathered.__self__._thread.join(60)
    trainer.saver.save_if_due(trainer, last=True)
    assert "ss_tag_frequency" in receipt_of(trainer)
    assert (trainer.directory / FILE).is_file()


def test_data_that_goes_away_costs_its_part_of_the_receipt_alone(
    write_config, dataset_directory, tmp_path, caplog
):
    copy = shutil.copytree(dataset_directory, tmp_path / "copy")
    dataset = LatentDataset(str(copy))
    shutil.rmtree(copy)
    config = load(write_config(networks=LORA))
    contents = DatasetContents({"dataset": dataset}, tmp_path)
    receipt = receipt_module.make_receipt(config, dataset, contents, devices="1 x cpu")
    found = receipt.metadata()
    assert "receipt: incomplete (" in caplog.text  # captions can't be counted
    assert found[UNREAD] == found[FILES] == "17"
    assert found[BASE]
