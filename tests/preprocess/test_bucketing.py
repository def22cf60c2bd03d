import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess import bucketing as script
from preprocess.bucketing import bucketing, main
from preprocess.sources import name_images

ROOT = Path(__file__).parents[2]
SMALL = {"resolution": 64, "min_length": 48, "max_length": 80, "step": 16}
ARGUMENTS = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]


def draw(directory, name, size=(100, 100), seed=0):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    draw(tmp_path / "raw", "square.png")
    draw(tmp_path / "raw", "sub/tall.v2.jpg", (60, 110), seed=1)
    draw(tmp_path / "raw", "wide.webp", (30, 20), seed=2)
    write(tmp_path / "raw" / "square.txt", "a square")
    write(tmp_path / "raw" / "sub" / "captions" / "tall.v2.caption", "tall")
    return tmp_path / "raw"


def run(source, target, **options):
    return bucketing(directory=source, output=target, **{**SMALL, **options})


def entries(target):
    lines = (target / "images.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def files(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def test_dataset(source, tmp_path):
    target = tmp_path / "new" / "dataset"
    result = run(source, target)
    assert (result.done, result.skipped, result.failed, result.enlarged) == (3, 0, [], 1)
    assert result.images_per_bucket == {(48, 80): 1, (64, 64): 1, (80, 48): 1}
    assert json.loads((target / "buckets.json").read_text(encoding="utf-8")) == {
        "(48, 80)": ["sub/tall.v2"],
        "(64, 64)": ["square"],
        "(80, 48)": ["wide"],
    }
    assert files(target) == [
        *("buckets.json", "captions/square.txt", "captions/sub/tall.v2.caption", "images.jsonl"),
        *("images/square.png", "images/sub/tall.v2.png", "images/wide.png", "sources.json"),
    ]
    with Image.open(target / "images" / "sub" / "tall.v2.png") as image:
        assert (image.size, image.mode) == ((48, 80), "RGB")
    entry = entries(target)["sub/tall.v2"]
    assert len(entry.pop("sha256")) == 64
    status = (source / "sub" / "tall.v2.jpg").stat()
    assert entry == {
        "name": "sub/tall.v2",
        "source": "sub/tall.v2.jpg",
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "original_size": [60, 110],
        "bucket": [48, 80],
        "resized_size": [48, 88],
        "crop_top_left": [4, 0],
    }


def test_second_run_does_what_is_new_or_changed(source, tmp_path):
    target = tmp_path / "dataset"
    run(source, target)
    before = {
        name: (target / name).stat().st_mtime_ns
        for name in files(target / "images")
        for name in [f"images/{name}"]
    }
    for name in ("square", "wide", "sub/tall.v2"):
        write(target / "latents" / f"{name}.npy", "")
    assert (run(source, target).done, run(source, target).skipped) == (0, 3)

    draw(source, "wide.webp", (20, 30), seed=9)
    draw(source, "new.png")
    os.utime(source / "square.png", ns=(1, 1))  # another date, the same content
    result = run(source, target)
    assert (result.done, result.skipped) == (2, 2)
    assert result.images_per_bucket == {(48, 80): 2, (64, 64): 2}
    changed = {n for n, time in before.items() if (target / n).stat().st_mtime_ns != time}
    assert changed == {"images/wide.png"}
    # The edited image's latents are out of date; the others' are kept.
    assert files(target / "latents") == ["square.npy", "sub/tall.v2.npy"]
    assert entries(target)["square"]["mtime_ns"] == 1
    assert run(source, target).skipped == 4


def test_other_buckets_redo_only_images_whose_bucket_changes(source, tmp_path):
    target = tmp_path / "dataset"
    run(source, target)
    result = run(source, target, max_ratio=1.0)
    assert (result.done, result.skipped) == (2, 1)
    assert result.images_per_bucket == {(64, 64): 3}


def test_vanished_sources_are_left_out(source, tmp_path, caplog):
    target = tmp_path / "dataset"
    caplog.set_level("INFO")
    run(source, target)
    (source / "wide.webp").unlink()
    assert (80, 48) not in run(source, target).images_per_bucket
    assert "1 images of an earlier run are left out" in caplog.text
    assert set(entries(target)) == {"square", "sub/tall.v2"}


def test_stopped_run_is_continued(source, tmp_path, monkeypatch):
    target = tmp_path / "dataset"
    process, calls = script._process, []

    def stop(task, **options):
        calls.append(task.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return process(task, **options)

    monkeypatch.setattr(script, "_process", stop)
    with pytest.raises(KeyboardInterrupt):
        run(source, target)
    assert not (target / "buckets.json").exists()
    # What a kill may leave: half a line, and a half-written file under a temporary name.
    with (target / "images.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"name": "sub/ta')
    write(target / "images" / ".1-1.tmp", "half")
    monkeypatch.setattr(script, "_process", process)
    result = run(source, target)
    assert (result.done, result.skipped, result.failed) == (2, 1, [])
    assert set(entries(target)) == {"square", "sub/tall.v2", "wide"}


def test_failed_write_leaves_no_half_image(source, tmp_path, monkeypatch):
    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("No space left on device")

    target = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="No space"):
            run(source, target)
    assert files(target) == ["images.jsonl"]
    assert run(source, target).done == 3


def test_bad_images_are_named_and_skipped(source, tmp_path, capsys):
    (source / "bad.png").write_bytes((source / "square.png").read_bytes()[:2000])
    write(source / "text.jpg", "no image")
    arguments = ["-d", str(source), "-o", str(tmp_path / "dataset"), *ARGUMENTS]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "3 images done, 0 kept, 2 failed, 1 smaller than their bucket;" in output.out
    assert "bad.png: can't be read" in output.err
    assert "text.jpg: is not an image that Pillow reads" in output.err
    for name in ("bad.png", "text.jpg"):
        (source / name).unlink()
    assert main(arguments) == 0
    assert "0 images done, 3 kept, 0 failed" in capsys.readouterr().out


def test_equal_stems_get_names_of_their_own(tmp_path):
    names = ["Cat.avif", "cat.jpg", "cat.png", "cat_jpg.png", "dog.png"]
    tasks = name_images([(name, tmp_path / name) for name in names])
    assert [task.name for task in tasks] == ["Cat", "cat_jpg", "cat_png", "cat_jpg_png", "dog"]
    draw(tmp_path / "raw", "cat.png")
    draw(tmp_path / "raw", "cat.bmp", (60, 110))
    write(tmp_path / "raw" / "cat.txt", "a cat")
    run(tmp_path / "raw", tmp_path / "dataset")
    assert files(tmp_path / "dataset" / "images") == ["cat.png", "cat_png.png"]
    assert files(tmp_path / "dataset" / "captions") == ["cat.txt", "cat_png.txt"]
    assert entries(tmp_path / "dataset")["cat_png"]["source"] == "cat.png"


def test_captions_follow_the_newer_file(source, tmp_path):
    target = tmp_path / "dataset"
    copy = target / "captions" / "square.txt"
    run(source, target)
    write(copy, "edited in the dataset")
    os.utime(source / "square.txt", ns=(1, 1))
    run(source, target)
    assert copy.read_text(encoding="utf-8") == "edited in the dataset"
    write(source / "square.txt", "edited at the source")
    later = copy.stat().st_mtime_ns + 10**9
    os.utime(source / "square.txt", ns=(later, later))
    run(source, target)
    assert copy.read_text(encoding="utf-8") == "edited at the source"


@pytest.mark.parametrize("inside", [".", "dataset"])
def test_output_in_the_input_is_not_read_again(source, inside):
    target = source / inside
    assert run(source, target).done == 3
    assert (run(source, target).done, run(source, target).skipped) == (0, 3)
    assert files(target / "images") == ["square.png", "sub/tall.v2.png", "wide.png"]
    assert Image.open(source / "square.png").size == (100, 100)


def test_input_in_the_output(source, tmp_path):
    assert run(source, tmp_path).done == run(source, tmp_path).skipped == 3
    for wrong in (tmp_path / "images", tmp_path / "images" / "sub"):
        with pytest.raises(ValueError, match=r"is where results of .* are written"):
            run(wrong, tmp_path)


def test_wrong_arguments(source, tmp_path, capsys):
    for directory, options, message in (
        (tmp_path / "absent", [], "absent: no such directory"),
        (source, ["--min_length", "100"], "min_length"),
        (tmp_path / "empty", [], "empty: holds no images"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        arguments = ["-d", str(directory), "-o", str(tmp_path / "out"), *ARGUMENTS, *options]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    draw(tmp_path / "out", "images/mine.png")
    with pytest.raises(ValueError, match="holds files that bucketing didn't write"):
        run(source, tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main(["--threads", "x"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [("--input_dir", "--output_dir"), ("--directory", "--output_path"), ("-d", "--output")],
)
def test_option_names_of_the_original(source, tmp_path, inputs, outputs):
    options = [inputs, str(source), outputs, str(tmp_path / "out"), "--threads", "1", *ARGUMENTS]
    assert main(options) == 0
    assert (tmp_path / "out" / "buckets.json").is_file()


def test_worker_processes_from_another_directory(source, tmp_path):
    """Large enough for processes, so that what they import is found from anywhere."""
    with (source / "square.png").open("ab") as file:
        file.write(bytes(17 * 2**20))
    command = [sys.executable, str(ROOT / "preprocess" / "bucketing.py"), *ARGUMENTS]
    command += ["-d", "raw", "-o", "dataset", "--num_workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "3 images done" in done.stdout
    in_process = tmp_path / "in_process"
    run(source, in_process)
    for name in files(in_process / "images"):
        images = [target / "images" / name for target in (in_process, tmp_path / "dataset")]
        assert images[0].read_bytes() == images[1].read_bytes()


def test_a_caption_of_another_kind_replaces_the_old_one(tmp_path):
    source, target = tmp_path / "source", tmp_path / "dataset"
    source.mkdir()
    Image.new("RGB", (64, 64), "red").save(source / "a.png")
    options = {"resolution": 64, "min_length": 64, "max_length": 64}
    (source / "a.caption").write_text("old", encoding="utf-8")
    bucketing(directory=source, output=target, **options)
    (source / "a.caption").unlink()
    (source / "a.txt").write_text("new", encoding="utf-8")
    bucketing(directory=source, output=target, **options)
    found = {path.name: path.read_text() for path in (target / "captions").iterdir()}
    assert found == {"a.txt": "new"}


def test_buckets_suit_a_family_of_models(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, size in {"square": (64, 64), "wide": (120, 40), "panorama": (160, 32)}.items():
        Image.new("RGB", size, "red").save(source / f"{name}.png")
    sizes = {}
    for family in ("sd1", "sd2", "sdxl"):
        result = bucketing(directory=source, output=tmp_path / family, family=family)
        sizes[family] = sorted(result.images_per_bucket)
    assert sizes == {
        "sd1": [(512, 512), (640, 384)],
        "sd2": [(768, 768), (1024, 512)],
        "sdxl": [(1024, 1024), (1728, 576), (2048, 512)],
    }
    result = bucketing(directory=source, output=tmp_path / "own", family="sdxl", max_ratio=2.0)
    assert sorted(result.images_per_bucket) == [(1024, 1024), (1408, 704)]
    with pytest.raises(ValueError, match="family: 'sd9' is not one of sd1, sd2, sdxl"):
        bucketing(directory=source, output=tmp_path / "no", family="sd9")
