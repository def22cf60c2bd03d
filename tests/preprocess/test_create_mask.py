"""Masks from faces, transparency and mask images.

The photograph is matplotlib's grace_hopper.jpg, a portrait in the public domain.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image, ImageDraw

from modules.dataset import LatentDataset
from preprocess import create_mask as script
from preprocess.bucketing import bucketing
from preprocess.create_mask import create_mask, main
from preprocess.faces import widen

ROOT = Path(__file__).parents[2]
PORTRAIT = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
FACE = (155, 105, 377, 327)  # in the photograph's 512 x 600 pixels, eyes, nose and mouth within
SMALL = {"resolution": 256, "min_length": 128, "max_length": 384}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A dataset of a portrait and a picture without a face."""
    raw = tmp_path_factory.mktemp("photographs") / "raw"
    raw.mkdir()
    shutil.copy(PORTRAIT, raw / "portrait.jpg")
    Image.new("RGB", (300, 300), "green").save(raw / "meadow.png")
    bucketing(directory=raw, output=raw.parent / "set", **SMALL)
    return raw.parent / "set"


@pytest.fixture
def dataset(photographs, tmp_path):
    return shutil.copytree(photographs, tmp_path / "set")


@pytest.fixture
def drawings(tmp_path):
    """Images with and without transparency, and the dataset made of them: (raw, dataset)."""
    raw = tmp_path / "raw"
    raw.mkdir()
    clear = Image.new("RGBA", (400, 240), (255, 0, 0, 0))
    ImageDraw.Draw(clear).rectangle((200, 0, 399, 239), fill=(0, 0, 255, 255))
    clear.save(raw / "half.png")
    Image.new("RGB", (200, 200), "green").save(raw / "solid.png")
    bucketing(directory=raw, output=tmp_path / "drawn", **SMALL)
    return raw, tmp_path / "drawn"


def read(dataset, name, folder="mask"):
    with np.load(dataset / folder / f"{name}.npz") as arrays:
        return arrays["arr_0"]


def counts(result):
    return result.done, result.skipped, len(result.failed), result.without


def resized_face(dataset):
    """Where the face is in the portrait's bucket image."""
    lines = (dataset / "images.jsonl").read_text(encoding="utf-8").splitlines()
    entry = next(e for e in map(json.loads, lines) if e["name"] == "portrait")
    scale = entry["resized_size"][0] / 512
    top, left = entry["crop_top_left"]
    return [round(x * scale) - offset for x, offset in zip(FACE, (left, top) * 2, strict=True)]


def test_a_face_counts_and_its_surroundings_count_little(dataset):
    assert counts(create_mask(directory=dataset)) == (2, 0, 0, 1)
    mask = read(dataset, "portrait")
    width, height = Image.open(dataset / "images" / "portrait.png").size
    assert (mask.shape, mask.dtype) == ((height // 8, width // 8), np.float32)
    left, top, right, bottom = (round(x / 8) for x in resized_face(dataset))
    inner = mask[top + 2 : bottom - 2, left + 2 : right - 2]
    assert inner.size > 50
    assert inner.min() == 1
    outer = np.ones_like(mask, dtype=bool)
    outer[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
    assert outer.sum() > 50
    np.testing.assert_allclose(mask[outer], 0.05)
    assert (read(dataset, "meadow") == 1).all()
    assert len(np.unique(mask)) > 2  # a face's edge lies within latent positions


def test_training_reads_the_masks(dataset):
    create_mask(directory=dataset)
    for name in ("portrait", "meadow"):
        width, height = Image.open(dataset / "images" / f"{name}.png").size
        path = dataset / "latents" / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.zeros((4, height // 8, width // 8), dtype=np.float32))
    data = LatentDataset(str(dataset), prompt="", mask=True)
    data.check_latent_shapes(8, 4)
    for index, name in enumerate(data.names):
        assert (data[index].mask[0].numpy() == read(dataset, name)).all()


def test_options_of_faces(dataset):
    create_mask(directory=dataset, background=0.5, no_face="background")
    plain = read(dataset, "portrait")
    assert plain.min() == 0.5
    assert (read(dataset, "meadow") == 0.5).all()
    create_mask(directory=dataset, background=0.5, margin=0.25)
    wider = read(dataset, "portrait")
    assert (wider >= plain).all()
    assert (wider == 1).sum() > 1.5 * (plain == 1).sum()
    assert counts(create_mask(directory=dataset, min_size=250)) == (2, 0, 0, 2)
    cascade = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
    assert create_mask(directory=dataset, cascade=cascade).without == 1
    assert create_mask(directory=dataset, cascade=cascade.name).skipped == 2
    assert create_mask(directory=dataset, scale_factor=16).done == 2
    assert read(dataset, "meadow").shape == (16, 16)


def test_margins_end_at_the_image():
    assert widen((10, 20, 30, 60), 0.5, (100, 100)) == (0, 0, 40, 80)
    assert widen((10, 20, 30, 60), 0.1, (31, 62)) == (8, 16, 31, 62)


def test_the_grid_is_that_of_the_latents(dataset):
    size = Image.open(dataset / "images" / "meadow.png").size
    (dataset / "latents").mkdir()
    np.save(dataset / "latents" / "meadow.npy", np.zeros((4, size[1] // 4, size[0] // 4)))
    create_mask(directory=dataset)
    assert read(dataset, "meadow").shape == (64, 64)


def test_a_second_run_makes_what_is_new_or_changed(dataset, caplog):
    caplog.set_level("INFO")
    create_mask(directory=dataset)
    assert counts(create_mask(directory=dataset)) == (0, 2, 0, 1)
    (dataset / "mask" / "portrait.npz").unlink()
    assert counts(create_mask(directory=dataset)) == (1, 1, 0, 1)
    os.utime(dataset / "images" / "meadow.png", ns=(1, 1))
    assert counts(create_mask(directory=dataset)) == (0, 2, 0, 1)  # a copy has other dates
    with (dataset / "images" / "meadow.png").open("ab") as file:
        file.write(b" ")
    assert counts(create_mask(directory=dataset)) == (1, 1, 0, 1)
    assert counts(create_mask(directory=dataset, background=0.1)) == (2, 0, 0, 1)
    np.savez(dataset / "mask" / "portrait.npz", np.zeros((3, 3)))
    assert counts(create_mask(directory=dataset, background=0.1)) == (0, 2, 0, 1)
    assert "1 masks were made by another program and stay; --overwrite" in caplog.text
    assert read(dataset, "portrait").shape == (3, 3)
    assert create_mask(directory=dataset, background=0.1, overwrite=True).done == 1
    assert read(dataset, "portrait").shape != (3, 3)


def test_transparency(drawings):
    raw, dataset = drawings
    result = create_mask(directory=dataset, origin="alpha", originals=raw)
    assert counts(result) == (2, 0, 0, 1)
    width, height = Image.open(dataset / "images" / "half.png").size
    mask = read(dataset, "half")
    assert mask.shape == (height // 8, width // 8)
    middle = width // 16
    assert (mask[:, : middle - 1] == 0).all()
    assert (mask[:, middle + 1 :] == 1).all()
    assert (read(dataset, "solid") == 1).all()
    create_mask(directory=dataset, origin="alpha", originals=raw, background=0.2)
    assert read(dataset, "half").min() == np.float32(0.2)


def test_transparency_follows_the_crop(tmp_path):
    """The upper 256 of 640 rows are solid; what the bucket cuts off is not in the mask."""
    raw, dataset = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    tall = Image.new("RGBA", (256, 640), (0, 0, 0, 0))
    ImageDraw.Draw(tall).rectangle((0, 0, 255, 255), fill="red")
    tall.save(raw / "tall.png")
    bucketing(directory=raw, output=dataset, resolution=256, min_length=256, max_length=256)
    create_mask(directory=dataset, origin="alpha", originals=raw)
    mask = read(dataset, "tall")  # of the rows 192 to 447
    assert (mask[:8] == 1).all()
    assert (mask[8:] == 0).all()
    bucketing(directory=raw, output=dataset, resolution=320, min_length=192, max_length=512)
    create_mask(directory=dataset, origin="alpha", originals=raw)
    mask, image = read(dataset, "tall"), Image.open(dataset / "images" / "tall.png")
    assert image.size == (256, 384)
    red = np.asarray(image)[:, :, 1] < 128
    assert (mask == red.reshape(48, 8, 32, 8).mean(axis=(1, 3))).all()
    assert mask.mean() == np.float32(1 / 3)


def test_originals_that_are_not_as_they_were_are_named(drawings, tmp_path, capsys):
    raw, dataset = drawings
    arguments = ["-d", str(dataset), "--from", "alpha", "--originals", str(raw)]
    assert main(arguments) == 0
    assert "masks: 2 made, 0 kept, 0 failed; 1 without transparency, counted fully" in (
        capsys.readouterr().out
    )
    Image.new("RGBA", (100, 300)).save(raw / "half.png")
    (raw / "solid.png").unlink()
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "masks: 0 made, 0 kept, 2 failed" in output.out
    assert "half.png: size (100, 300) was (400, 240) when the dataset was made" in output.err
    assert "solid.png: no such image; bucketing read it from another folder" in output.err
    assert not (dataset / "mask" / "half.npz").exists()
    (dataset / "images.jsonl").unlink()
    result = create_mask(directory=dataset, origin="alpha", originals=raw)
    assert len(result.failed) == 2
    assert "doesn't say which file half was made from" in "".join(result.failed)


@pytest.mark.parametrize("size", ["original", "half", "bucket"])
def test_mask_images(drawings, tmp_path, size):
    _, dataset = drawings
    bucket = Image.open(dataset / "images" / "half.png").size
    width, height = {"original": (400, 240), "half": (200, 120), "bucket": bucket}[size]
    drawn = Image.new("L", (width, height), 0)
    ImageDraw.Draw(drawn).rectangle((width // 2, 0, width, height), fill=255)
    ImageDraw.Draw(drawn).rectangle((0, 0, width // 4 - 1, height), fill=51)
    (tmp_path / "masks").mkdir()
    drawn.save(tmp_path / "masks" / "half.png")
    options = {"directory": dataset, "origin": "images", "masks": tmp_path / "masks"}
    assert counts(create_mask(**options)) == (1, 0, 0, 1)
    mask = read(dataset, "half")
    assert mask.shape == (bucket[1] // 8, bucket[0] // 8)
    quarter = bucket[0] // 32
    np.testing.assert_allclose(mask[:, : quarter - 1], 0.2, atol=1e-6)
    assert (mask[:, quarter + 1 : 2 * quarter - 1] == 0).all()
    assert (mask[:, 2 * quarter + 1 :] == 1).all()
    assert not (dataset / "mask" / "solid.npz").exists()
    assert counts(create_mask(**options)) == (0, 1, 0, 1)
    Image.new("L", (100, 100)).save(tmp_path / "masks" / "half-masklabel.png")
    result = create_mask(**options)
    assert counts(result) == (0, 0, 1, 1)
    assert (
        "half-masklabel.png: size (100, 100) is the shape neither of the image"
        in (result.failed[0])
    )


def test_bad_images_are_named_and_lose_their_masks(dataset, capsys):
    create_mask(directory=dataset)
    (dataset / "images" / "meadow.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64)).save(dataset / "images" / "portrait.png")
    assert main(["-d", str(dataset)]) == 1
    output = capsys.readouterr()
    assert "masks: 0 made, 0 kept, 2 failed" in output.out
    assert "meadow.png: is not an image that Pillow reads" in output.err
    assert "portrait.png: size (64, 64) is not bucket" in output.err
    assert list((dataset / "mask").glob("*.npz")) == []
    (dataset / "images" / "meadow.png").unlink()
    assert "no such image; run bucketing.py again" in create_mask(directory=dataset).failed[0]


def test_a_stopped_run_is_continued(dataset, monkeypatch):
    save, calls = np.savez, []

    def stop(file, **arrays):
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise KeyboardInterrupt
        save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", stop)
        with pytest.raises(KeyboardInterrupt):
            create_mask(directory=dataset)
    assert len(list((dataset / "mask").glob("*.npz"))) == 1
    assert counts(create_mask(directory=dataset)) == (1, 1, 0, 1)


def test_worker_processes_make_the_same_masks(dataset, tmp_path, monkeypatch):
    create_mask(directory=dataset, output=tmp_path / "one")
    monkeypatch.setattr(script, "_WORTH_PROCESSES", 1)
    create_mask(directory=dataset, output=tmp_path / "two", num_workers=2)
    for name in ("portrait", "meadow"):
        assert (read(tmp_path, name, "one") == read(tmp_path, name, "two")).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cascade", "animeface.xml"], "animeface.xml is not a file, nor a cascade that comes"),
        (["--cascade", "animeface.xml"], "https://github.com/nagadomi/lbpcascade_animeface"),
        (["--cascade", "buckets.json"], "OpenCV can't read buckets.json as a cascade ("),
        (["--background", "1.5"], "background: 1.5 is not within 0 and 1"),
        (["--margin", "-1"], "margin: -1 is not 0 or more"),
        (["--scale_factor", "0"], "scale_factor: 0 is not 1 or more"),
        (["--scale_factor", "7"], "the VAE wants multiples of 7"),
        (["--masks", "x"], "masks: has no effect on masks from faces"),
        (["--from", "alpha"], "originals: is missing; name the folder that bucketing read"),
        (["--from", "images", "--masks", "x"], "masks: x is no directory; name the folder of mask"),
        (["--from", "images", "--masks", "images/sub"], "has no mask for any image; the one of"),
    ],
)
def test_wrong_arguments(dataset, monkeypatch, capfd, options, message):
    (dataset / "images" / "sub").mkdir()
    monkeypatch.chdir(dataset)
    assert main(["-d", str(dataset), *options]) == 2
    assert message in capfd.readouterr().err


def test_opencv_without_cascades(dataset, monkeypatch, capsys):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    assert main(["-d", str(dataset)]) == 2
    expected = f'OpenCV {cv2.__version__} has no cascades any more; pip install "opencv-python-'
    assert expected in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["-d", str(dataset)]) == 2
    assert 'isn\'t installed; pip install "opencv-python-headless<5"' in capsys.readouterr().err


def test_as_a_script_from_another_directory(dataset, tmp_path):
    command = [sys.executable, str(ROOT / "preprocess" / "create_mask.py"), "--input_dir", "set"]
    done = subprocess.run(
        [*command, "--output_path", "masks"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set: masks: 2 made, 0 kept, 0 failed; 1 without a face, counted fully\n"
    assert sorted(p.name for p in (tmp_path / "masks").glob("*.npz")) == [
        "meadow.npz",
        "portrait.npz",
    ]
