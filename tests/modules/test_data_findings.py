"""What the plan says of a dataset's images: twins, small ones, unused ones."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import photos
import pytest
import tiny

from main import main
from modules.buckets import BucketBatchSampler
from modules.data_findings import Finding, find_in_data, find_unused, write_findings
from modules.dataset import LatentDataset
from modules.mixture import Mixture


@pytest.fixture
def directory(tmp_path):
    """Six images: 0 and 4 are one file, 1 and 5 too with two captions; 2 is small."""
    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 6}, captions=["a cat"])
    (directory / "captions" / "image005.caption").write_text("a dog", encoding="utf-8")
    lines = [note(f"image{n:03d}", content=n % 4) for n in range(6)]
    lines[2] |= {"original_size": [20, 16], "resized_size": [40, 32]}
    write_notes(directory, lines)
    return directory


def note(name, *, content):
    return {
        **{"name": name, "source": f"{name}.jpg", "bytes": 9, "mtime_ns": 1},
        "sha256": hashlib.sha256(str(content).encode()).hexdigest(),
        **{"original_size": [64, 64], "resized_size": [32, 32], "crop_top_left": [0, 0]},
    }


def write_notes(directory, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "images.jsonl").write_text(text, encoding="utf-8")


def lines_of(dataset):
    return [finding.line() for finding in find_in_data(dataset)]


def test_twins_and_small_images_are_named(directory):
    assert lines_of(LatentDataset(str(directory))) == [
        "duplicates: 2 of 6 images have the content of another, 1 times with other captions: "
        "image001 = image005, image000 = image004",
        "smaller than their bucket, so enlarged: 1 of 6 images: image002 (20x16, x2.00)",
    ]


def test_hashes_that_differ_late_are_no_twins(directory):
    same = "0" * 56
    lines = [note(f"image{n:03d}", content=0) | {"sha256": same + f"{n:08x}"} for n in range(1, 6)]
    write_notes(directory, lines)
    assert lines_of(LatentDataset(str(directory))) == []


def test_twins_are_found_across_the_datasets_of_a_mixture(directory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    write_notes(other, [note("image000", content=3)])
    mixture = Mixture([{"path": str(directory)}, {"path": str(other)}])
    twins = lines_of(mixture)[0]
    assert "3 of 12 images" in twins
    assert "data/image003 = other/image000" in twins


def test_images_that_buckets_json_does_not_list(directory):
    with (directory / "images.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(note("lost", content=9)) + "\n")
    told = lines_of(LatentDataset(str(directory)))
    assert "never used, since buckets.json doesn't list them: 1 images: lost" in told


def test_a_dataset_without_notes_has_no_findings(directory):
    (directory / "images.jsonl").unlink()
    assert find_in_data(LatentDataset(str(directory))) == []
    assert find_in_data([1, 2]) == []


def test_what_a_short_run_leaves_out_is_what_its_plan_leaves_out(directory):
    dataset = LatentDataset(str(directory), repeats=2)
    sampler = BucketBatchSampler(dataset.buckets, batch_size=2)
    found = find_unused(dataset, sampler, 2)
    seen = {number % 6 for number in np.concatenate(sampler.plan(0)[:2]).tolist()}
    assert set(found.items) == {dataset.names[n] for n in range(6) if n not in seen}
    assert found.text.endswith(f"{6 - len(seen)} of 6 images")
    assert find_unused(dataset, sampler, len(sampler)) is None


def test_a_line_names_a_few_and_the_file_all(tmp_path):
    finding = Finding("twins", [str(n) for n in range(9)])
    assert finding.line() == "twins: 0, 1, 2, 3 and 5 more"
    write_findings(tmp_path / "data.txt", [finding, Finding("small", ["x"])])
    text = (tmp_path / "data.txt").read_text(encoding="utf-8")
    assert text == "twins:\n" + "".join(f"  {n}\n" for n in range(9)) + "\nsmall:\n  x\n"
    write_findings(tmp_path / "none.txt", [])
    assert not (tmp_path / "none.txt").exists()


def test_a_run_and_a_trial_list_all(tmp_path, model_directory, capsys):
    source = photos.take(tmp_path / "photos", 3)
    for number in range(5):
        photos.draw(source / f"small{number}.png", seed=50 + number, size=(40, 40))
        (source / f"small{number}.txt").write_text("a red cat", encoding="utf-8")
    data = photos.prepare(source, tmp_path / "data", model_directory)
    config = photos.write_yaml(tmp_path / "run.yaml", data=data, model=model_directory)
    report = tmp_path / "report.txt"
    assert main([config, "--check", "--report", str(report)]) == 0
    assert "  small4 (40x40, x1.60)\n" in report.read_text(encoding="utf-8")
    assert not (tmp_path / "output").exists()
    assert main([config]) == 0
    kept = (tmp_path / "output" / "run" / "data.txt").read_text(encoding="utf-8")
    assert kept == report.read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert "so enlarged: 5 of 8 images: small0 (40x40, x1.60), small1" in told
    assert f"listed in {tmp_path / 'output' / 'run' / 'data.txt'}" in told
