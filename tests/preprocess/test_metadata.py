"""Captions of metadata.jsonl and sd-scripts' JSON, and folders `10_sks dog/`, end to end."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from modules.dataset import ImageDataset
from preprocess.bucketing import bucketing, main

SMALL = {"resolution": 64, "min_length": 48, "max_length": 80, "step": 16}


@pytest.fixture
def source(tmp_path):
    for seed, name in enumerate(("cat.png", "dog.jpg", "sub/cat.png", "sub/own.png")):
        draw(tmp_path / "raw" / name, seed)
    write(tmp_path / "raw" / "sub" / "own.txt", "my own")
    return tmp_path / "raw"


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_lines(path, *entries):
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    return write(path, "".join(f"{line}\n" for line in lines))


def run(source, target, **options):
    return bucketing(directory=source, output=target, **{**SMALL, **options})


def captions(target):
    folder = target / "captions"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in files}


def test_lines_of_all_folders_become_captions(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    top = write_lines(
        source / "metadata.jsonl",
        {"file_name": "cat.png", "text": ["a cat", "a cat\n on a  mat"]},
        {"file_name": "sub/cat.png", "caption": "of the folder above"},
        {"file_name": "gone.png", "text": "gone"},
        "",
        "{torn",
        {"text": "without a name"},
        {"file_name": "dog.jpg", "text": 5},
        {"file_name": "dog.jpg", "boxes": []},
    )
    below = write_lines(
        source / "sub" / "metadata.jsonl",
        {"file_name": "cat.png", "prompt": "the nearer"},
        {"image": "own.png", "additional_feature": "not used"},
    )
    result = run(source, tmp_path / "data")
    assert (result.done, result.failed) == (4, [])
    assert captions(tmp_path / "data") == {
        "cat.txt": "a cat\na cat on a mat\n",
        "sub/cat.txt": "the nearer\n",
        "sub/own.txt": "my own",
    }
    assert caplog.messages == [
        f"{top}: captions of 2 images",
        f"{top}: 1 of its images are not there: gone.png",
        f"{top}: 3 entries are left out, they are no object with an image and a text: line 5, "
        "line 6, line 7",
        f"{top}: 1 entries have no caption (text, caption, prompt, additional_feature)",
        f"{below}: captions of 2 images",
    ]


def test_the_json_of_sd_scripts(source, tmp_path, caplog):
    entries = {
        str(source / "cat.png"): {"caption": "a cat", "tags": "grey, mat"},
        "dog": {"tags": ["dog", "park"], "train_resolution": [64, 64]},
        "sub/cat": {"caption": "a cat below", "tags": ""},
        "no": 1,
    }
    file = write(tmp_path / "meta_clean.json", json.dumps(entries))
    options = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]
    arguments = ["-d", str(source), "-o", str(tmp_path / "data"), *options]
    assert main([*arguments, "--metadata", str(file)]) == 0
    assert captions(tmp_path / "data") == {
        "cat.txt": "a cat, grey, mat\n",
        "dog.txt": "dog, park\n",
        "sub/cat.txt": "a cat below\n",
        "sub/own.txt": "my own",
    }
    assert next(m for m in caplog.messages if "left out" in m).endswith(" and a text: no")
    assert main([*arguments, "--metadata", str(tmp_path / "none.json")]) == 2


def test_files_that_are_no_metadata_stop_nothing(source, tmp_path, caplog):
    lists = write(source / "metadata.json", "[1, 2]")
    bytes_ = source / "sub" / "metadata.jsonl"
    bytes_.write_bytes(b"\xff\xfe")
    assert run(source, tmp_path / "data").done == 4
    assert captions(tmp_path / "data") == {"sub/own.txt": "my own"}
    messages = [m for m in caplog.messages if "is not used, it can't be read" in m]
    assert [m.partition(":")[0] for m in messages] == [str(lists), str(bytes_)]


def test_captions_are_written_if_new_or_newer(source, tmp_path):
    target = tmp_path / "data"
    file = write_lines(source / "metadata.jsonl", {"file_name": "cat.png", "text": "a cat"})
    run(source, target)
    copy = target / "captions" / "cat.txt"
    write(copy, "edited since")
    run(source, target)
    assert copy.read_text(encoding="utf-8") == "edited since"
    write_lines(file, {"file_name": "cat.png", "text": "a new cat"})
    later = copy.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))
    run(source, target)
    assert copy.read_text(encoding="utf-8") == "a new cat\n"
    own = write(source / "cat.txt", "of its own")
    os.utime(own, ns=(later, later))
    os.utime(copy, ns=(later - 1, later - 1))
    run(source, target)
    assert captions(target)["cat.txt"] == "of its own"


def test_captions_of_a_dataset_made_in_place_stay(source):
    write(source / "captions" / "cat.txt", "a person's")
    os.utime(source / "captions" / "cat.txt", ns=(1, 1))
    write_lines(source / "metadata.jsonl", {"file_name": "cat.png", "text": "listed"})
    run(source, source)
    assert captions(source)["cat.txt"] == "a person's"


def test_folders_with_repeats(tmp_path):
    raw = tmp_path / "img"
    for seed, name in enumerate(("10_sks dog/001.png", "10_sks dog/002.png", "2_a cat/001.png")):
        draw(raw / name, seed)
    write(raw / "10_sks dog" / "002.txt", "sks dog on a mat")
    run(raw, tmp_path / "data")
    dataset = ImageDataset(str(tmp_path / "data"), repeats="folders")
    assert dataset.names == ["10_sks dog/001", "10_sks dog/002", "2_a cat/001"]
    drawn = [dataset[index] for bucket in dataset.buckets for index in bucket]
    assert Counter((sample.name, sample.caption) for sample in drawn) == {
        ("10_sks dog/001", "sks dog"): 10,
        ("10_sks dog/002", "sks dog on a mat"): 10,
        ("2_a cat/001", "a cat"): 2,
    }
    assert "captions: 1 of 3; 2 without a file take the words of their folder" in dataset.summary()
