"""Hashes in the header of files, against what sd-scripts' rules say of the whole bytes."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from modules.safetensors_header import (
    HASHES,
    fill_in_hashes,
    hash_head,
    hash_legacy,
    hash_tensors,
    read_header,
)

SETTINGS = {"ss_output_name": 'a "cat"\n/\x01é', "ss_steps": "2"}


def tensors(elements: int = 700_000):
    torch.manual_seed(0)
    return {"b": torch.randn(elements), "a": torch.ones(3, dtype=torch.float16)}


def written(path, metadata, elements=700_000):
    save_file(tensors(elements), path, metadata={"format": "pt", **metadata, **HASHES})
    fill_in_hashes(path)
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("elements", [700_000, 262_200, 10])
def test_hashes_are_those_of_sd_scripts(tmp_path, elements):
    found = written(tmp_path / "a.safetensors", {**SETTINGS, "modelspec.title": "a"}, elements)
    alone = save(tensors(elements), SETTINGS)  # what sd-scripts hashes: its own metadata only
    start = 8 + int.from_bytes(alone[:8], "little")
    model_hash = hashlib.sha256(alone[start:]).hexdigest()
    legacy = hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    assert found["sshs_model_hash"] == model_hash
    assert found["sshs_legacy_hash"] == legacy
    assert found["modelspec.hash_sha256"] == f"0x{model_hash}"
    assert found["modelspec.title"] == "a"


def test_a_header_longer_than_what_is_hashed_counts_too(tmp_path):
    settings = {"ss_tag_frequency": "x" * 0x108000}  # one key, so that there is one order
    found = written(tmp_path / "a.safetensors", settings, 100_000)
    alone = save(tensors(100_000), settings)
    expected = hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    assert found["sshs_legacy_hash"] == expected


def test_the_tensors_stay_and_metadata_change_no_hash(tmp_path):
    first = written(tmp_path / "a.safetensors", {**SETTINGS, "sd_trainer.config": "x" * 999})
    second = written(tmp_path / "b.safetensors", SETTINGS)
    assert {key: first[key] for key in HASHES} == {key: second[key] for key in HASHES}
    kept = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(kept[key], tensor) for key, tensor in tensors().items())


def test_a_value_that_looks_like_a_key_is_no_place(tmp_path):
    text = json.dumps({key: value for key, value in HASHES.items()}, separators=(",", ":"))
    found = written(tmp_path / "a.safetensors", {"ss_training_comment": text})
    assert found["ss_training_comment"] == text
    assert found["sshs_model_hash"] == hash_tensors(tmp_path / "a.safetensors")


def test_the_head_of_a_file_is_hashed_as_a1111_does(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(bytes(range(256)) * 5000)
    expected = hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert hash_head(path) == expected


def test_headers_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors(10), path)
    header = read_header(path)
    assert header.metadata == {}
    assert header.tensors["b"]["shape"] == [10]
    assert hash_legacy(path, header) == hashlib.sha256(b"").hexdigest()[:8]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" * 10, b"\x10" + bytes(7) + b"no JSON at all.."]
)
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: can't be read as \.safetensors \("):
        read_header(path)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors(10), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="its header says"):
        read_header(path)
