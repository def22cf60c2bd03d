"""Scripts that share their work: parts make what the whole makes, at once and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny_tagger import TinyTagger

from modules.dataset import LatentDataset
from modules.journal import Journal
from preprocess.bucketing import bucketing
from preprocess.create_mask import create_mask
from preprocess.latent import latent
from preprocess.tagger import tagger
from preprocess.tagger_control import tagger_control
from preprocess.text_cache import cache_text

ROOT = Path(__file__).parents[2]
SIZES = {"resolution": 64, "min_length": 32, "max_length": 96, "step": 16}
OPTIONS = [word for key, value in SIZES.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Forty pictures of several shapes, with captions, and one that is none."""
    folder = tmp_path_factory.mktemp("shards") / "raw"
    rng = np.random.default_rng(0)
    for number in range(40):
        path = folder / f"{'ab'[number % 2]}/image{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = 60 + 7 * (number % 5), 60 + 11 * (number % 3)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def dataset(tmp_path):
    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 9, (48, 32): 5})
    for folder in ("latents", "captions"):
        shutil.rmtree(directory / folder)
    return directory


def start(source: Path, target: Path, *words: str) -> subprocess.Popen:
    """Bucketing in a process of its own."""
    script = str(ROOT / "preprocess" / "bucketing.py")
    command = [sys.executable, script, "-d", str(source), "-o", str(target), *OPTIONS, *words]
    return subprocess.Popen(
        [*command, "--num_workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_parts_of_bucketing_at_once_make_the_dataset_of_one(raw, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    bucketing(directory=raw, output=whole, **SIZES)
    parts = [start(raw, shared, "--shard", f"{n}/3") for n in (1, 2, 3)]
    output = [part.communicate() for part in parts]
    assert sorted(part.returncode for part in parts) == [0, 0, 1]  # one has the bad image
    assert sum("bad.png" in errors for _, errors in output) == 1
    assert all("once without --shard" in printed for printed, _ in output)
    assert not (shared / "buckets.json").exists()
    result = bucketing(directory=raw, output=shared, **SIZES)
    assert (result.done, result.skipped, len(result.failed)) == (0, 40, 1)
    assert contents(shared) == contents(whole)


def test_parts_give_metadata_to_the_same_images(tmp_path):
    raw, lines = tmp_path / "raw", []
    raw.mkdir()
    for number in range(8):  # x.jpg is named x and has the entry `x`, x.png is named x_png
        for suffix in (".jpg", ".png"):
            Image.new("RGB", (64, 64)).save(raw / f"x{number}{suffix}")
        lines.append(json.dumps({"file_name": f"x{number}", "text": f"caption {number}"}))
    (raw / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    bucketing(directory=raw, output=tmp_path / "whole", **SIZES)
    for number in (1, 2, 3):
        bucketing(directory=raw, output=tmp_path / "shared", **SIZES, shard=f"{number}/3")
    captions = contents(tmp_path / "shared" / "captions")
    assert captions == contents(tmp_path / "whole" / "captions")
    assert len(captions) == 8


@pytest.mark.skipif(os.name == "nt", reason="a signal of POSIX")
def test_a_killed_part_of_bucketing_is_run_again(raw, tmp_path):
    shared = tmp_path / "shared"
    killed = start(raw, shared, "--shard", "1/2")
    while not any(shared.glob("images/*/*.png")):
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    there = len(Journal(shared / "images.jsonl").entries)
    results = [
        bucketing(directory=raw, output=shared, **SIZES, shard=f"{number}/2") for number in (1, 2)
    ]
    assert sum(result.done + result.skipped for result in results) == 40
    assert results[0].skipped >= there
    assert bucketing(directory=raw, output=shared, **SIZES).skipped == 40
    listed = json.loads((shared / "buckets.json").read_text(encoding="utf-8"))
    assert Counter(name for names in listed.values() for name in names) == Counter(
        f"{'ab'[number % 2]}/image{number:02d}" for number in range(40)
    )


def test_parts_of_latents_are_those_of_the_whole(dataset, model_directory):
    options = {"directory": dataset, "model": str(model_directory), "batch_size": 2}
    latent(**options, output=dataset / "whole")
    results = [latent(**options, shard=f"{number}/3") for number in (1, 2, 3)]
    assert sum(result.done for result in results) == 14
    assert [result.skipped for result in results] == [0, 0, 0]
    assert len(LatentDataset(path=dataset, prompt="")) == 14  # parts need not be taken in
    assert [latent(**options, shard=f"{n}/3").done for n in (1, 2, 3)] == [0, 0, 0]
    result = latent(**options)
    assert (result.done, result.skipped) == (0, 14)
    whole, shared = contents(dataset / "whole"), contents(dataset / "latents")
    assert shared.keys() == whole.keys()
    assert shared["index.jsonl"] == whole["index.jsonl"]
    for name in whole.keys() - {"index.jsonl"}:
        one, other = (np.load(dataset / d / name) for d in ("whole", "latents"))
        np.testing.assert_allclose(one, other, atol=1e-5)  # other batches, other sums


def test_a_part_leaves_other_parts_latents_alone(dataset, model_directory, tmp_path):
    options = {"directory": dataset, "model": str(model_directory)}
    latent(**options)
    other = tiny.save_sd(tmp_path / "other", seed=1)
    before = contents(dataset / "latents")
    done = latent(directory=dataset, model=str(other), shard="2/2").done
    after = contents(dataset / "latents")
    changed = {name for name in before if before[name] != after.get(name)}
    assert len(changed) == done > 0
    assert latent(directory=dataset, model=str(other), shard="1/2").done == 14 - done
    assert latent(directory=dataset, model=str(other)).skipped == 14


def test_parts_of_captions_masks_and_features(dataset, model_directory, tmp_path):
    network = str(TinyTagger().save(tmp_path / "tagger"))
    jobs = {
        "captions": lambda **o: tagger(directory=dataset, model=network, threshold=0.0, **o),
        "pfg": lambda **o: tagger_control(directory=dataset, model=network, **o),
        "mask": lambda **o: create_mask(directory=dataset, scale_factor=4, **o),
        "text": lambda **o: cache_text(directory=dataset, model=str(model_directory), **o),
    }
    for folder, job in jobs.items():
        parts = [job(shard=f"{number}/3") for number in (1, 2, 3)]
        assert sum(part.done for part in parts) == 14, folder
        assert all(0 < part.done < 14 for part in parts), folder
        assert not any(part.failed for part in parts), folder
        again = job()
        assert (again.done, again.skipped) == (0, 14), folder
        assert not list((dataset / folder).glob("*.?of?.*")), folder
        shared = contents(dataset / folder)
        shutil.rmtree(dataset / folder)
        assert job().done == 14
        assert contents(dataset / folder).keys() == shared.keys(), folder


def test_parts_do_not_replace_features_of_another_tagger(dataset, tmp_path):
    first, second = (TinyTagger().save(tmp_path / "one"), TinyTagger(seed=1).save(tmp_path / "two"))
    tagger_control(directory=dataset, model=str(first))
    with pytest.raises(ValueError, match="parts can't replace them"):
        tagger_control(directory=dataset, model=str(second), shard="1/2", overwrite=True)


def test_what_is_no_part_is_said(raw, tmp_path):
    with pytest.raises(ValueError, match="shard: '3/2' is no part of a whole"):
        bucketing(directory=raw, output=tmp_path / "new", shard="3/2")
    assert not (tmp_path / "new").exists()
