"""PAINS 7: no caption is unused, and none missing, without a word."""

from __future__ import annotations

import json

import photos
import pytest

from main import main


@pytest.fixture
def source(tmp_path):
    """Four photographs, with .txt, .caption, both, and none."""
    source = photos.take(tmp_path / "photos")
    (source / "photo1.txt").rename(source / "photo1.caption")
    (source / "photo2.caption").write_text("a blue dog", encoding="utf-8")
    (source / "photo3.txt").unlink()
    return source


@pytest.fixture
def run(source, tmp_path, model_directory, capsys):
    """Prepare the photographs, run a config with overrides; return status and what was said."""
    data = photos.prepare(source, tmp_path / "data", model_directory)
    config = photos.write_yaml(tmp_path / "run.yaml", data=data, model=model_directory)

    def call(*overrides):
        capsys.readouterr()
        status = main([config, *overrides])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


ALLOW = "dataset.args.allow_missing_captions=true"


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_missing_caption_stops_the_run_unless_it_may_be_missing(run, check):
    status, _, told = run(*check)
    assert status == 2
    assert "captions: 1 of 4 missing: photo3; add captions/<name>.txt or .caption" in told
    status, told, _ = run(ALLOW, *check)
    assert status == 0
    assert "captions: 3 of 4; missing: photo3" in told


def test_both_kinds_of_files_are_read_and_shown_as_trained_on(run):
    status, told, _ = run(ALLOW, "dataset.args.prefix='photo of '", "--check")
    assert status == 0
    shown = [line.partition("caption of ")[2] for line in told.splitlines() if "caption of" in line]
    assert len(shown) == 3
    assert {"photo0: 'photo of a red cat'", "photo2: 'photo of a blue dog'"} <= set(shown)


def test_a_caption_of_no_image_is_named(run, tmp_path):
    (tmp_path / "data" / "captions" / "photo3.png.txt").write_text("lost", encoding="utf-8")
    _, told, _ = run(ALLOW, "--check")
    assert "captions of no image, so not used: 1 files: captions/photo3.png.txt" in told


def test_bucketing_names_captions_that_it_takes_to_no_image(source, tmp_path, caplog):
    (source / "photo0.png.txt").write_text("lost", encoding="utf-8")
    caplog.set_level("INFO")
    photos.sort(source, tmp_path / "other")
    assert "1 caption files belong to no image and are left: photo0.png.txt" in caplog.text


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_caption_that_is_cut_is_named(run, tmp_path, check):
    caption = tmp_path / "data" / "captions" / "photo0.txt"
    caption.write_text("cat " * 30, encoding="utf-8")
    status, told, _ = run(ALLOW, *check)
    assert status == 0
    assert "captions: the ends of 1 of 4 are not read: photo0 (30 tokens)" in told


def test_check_reads_every_caption_and_array(run, tmp_path):
    captions, latents = tmp_path / "data" / "captions", tmp_path / "data" / "latents"
    (captions / "photo2.caption").write_bytes("ein Käse".encode("latin-1"))
    whole = (latents / "photo1.npy").read_bytes()
    (latents / "photo1.npy").write_bytes(whole[:-8])
    status, _, told = run(ALLOW, "--check")
    assert status == 2
    assert "photo2.caption: is not UTF-8" in told
    assert "photo1.npy: can't be read" in told


def test_a_dataset_without_images_is_refused(run, tmp_path, source, model_directory):
    (tmp_path / "data" / "buckets.json").write_text(json.dumps({"(64, 64)": []}), encoding="utf-8")
    status, _, told = run(ALLOW)
    assert status == 2
    assert "holds no images; run preprocess/bucketing.py" in told
