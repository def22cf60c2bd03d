"""Bad image files are listed with what to do, others are done, nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hostile.pictures import ODD_NAMES, bad_pictures, encoded
from PIL import EpsImagePlugin
from tiny_tagger import TinyTagger

from modules.buckets import BucketIndex
from modules.images import open_alpha, open_image, read_size
from preprocess import bucketing, create_mask, latent, tagger
from preprocess.sources import name_images

SIZES = ["--resolution", "64", "--min_length", "64", "--max_length", "128", "--step", "8"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="such names can't be made there")


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that appears if something in a corpus is run."""
    return tmp_path / "canary"


@pytest.fixture
def corpus(tmp_path, canary) -> Path:
    """A folder of bad pictures and whole ones with odd names, links in circles and to nowhere."""
    source = tmp_path / "source"
    names = {name: encoded() for name in ODD_NAMES}
    for name, content in {**bad_pictures(canary), **names}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (source / "round").symlink_to(source)
    (source / "ring-a.png").symlink_to("ring-b.png")
    (source / "ring-b.png").symlink_to("ring-a.png")
    (source / "lost.png").symlink_to("absent.png")
    (source / "endless.png").symlink_to("/dev/zero")
    (source / "folder.png").mkdir()
    os.mkfifo(source / "pipe.png")
    return source


def everything(folder: Path, *, but: Path) -> set[str]:
    """All paths within a folder that are not within another."""
    paths = (path for path in folder.rglob("*") if not path.is_relative_to(but))
    return {str(path.relative_to(folder)) for path in paths}


def names_of(dataset: Path) -> set[str]:
    index = BucketIndex.load(dataset / "buckets.json").buckets
    return {name for names in index.values() for name in names}


def test_bucketing_lists_the_bad_and_does_the_rest(corpus, tmp_path, canary, capsys):
    output = tmp_path / "dataset"
    before = everything(tmp_path, but=output)
    assert bucketing.main(["-d", str(corpus), "-o", str(output), *SIZES, "--num_workers", "1"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    for name in bad_pictures(canary):
        lines = [each for each in told.splitlines() if each.startswith(f"{corpus / name}: ")]
        assert len(lines) == 1, name
        assert "remove it" in lines[0]
    expected = {name for name in ODD_NAMES.values() if name is not None}
    assert names_of(output) == expected
    files = (output / "images").rglob("*.png")
    assert {str(file.relative_to(output / "images"))[:-4] for file in files} == expected
    assert everything(tmp_path, but=output) == before
    assert not canary.exists()


def test_links_and_names_that_cannot_be_kept_are_told(corpus, tmp_path, caplog):
    strange = corpus / os.fsdecode(b"latin-\xe9.png")
    strange.write_bytes(encoded())
    result = bucketing.bucketing(directory=corpus, output=tmp_path / "dataset", num_workers=1)
    assert result.done == sum(name is not None for name in ODD_NAMES.values())
    for name in ("ring-a.png", "lost.png"):
        assert f"{corpus / name}: is left out, a link that leads nowhere; mend" in caplog.text
    assert r"latin-\udce9.png: is left out, its name is not UTF-8; rename it" in caplog.text


@pytest.mark.parametrize("name", bad_pictures(Path("canary")))
def test_a_bad_picture_is_refused_by_every_reader(name, tmp_path, canary):
    path = tmp_path / name
    path.write_bytes(bad_pictures(canary)[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (open_image, open_alpha):
        with pytest.raises(ValueError, match=name) as told:
            read(path)
        assert "\n" not in str(told.value)
        assert "remove it" in str(told.value)
    with contextlib.suppress(ValueError):
        assert min(read_size(path)) > 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 400 << 10


def test_a_wrong_suffix_is_no_fault(tmp_path):
    for kind, suffix in (("GIF", "png"), ("JPEG", "webp"), ("PNG", "jpg"), ("WEBP", "bmp")):
        path = tmp_path / f"{kind}.{suffix}"
        path.write_bytes(encoded(kind))
        assert open_image(path).size == read_size(path) == (50, 40)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "C:\\x", "a/../../b", "x\0", ""])
def test_names_that_lead_out_of_a_dataset_are_refused_by_every_step(name, tmp_path):
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (tmp_path / "x.png").write_bytes(encoded())
    (dataset / "buckets.json").write_text(json.dumps({"(64, 64)": [name]}), encoding="utf-8")
    before = everything(tmp_path, but=tmp_path / "none")
    steps = (
        lambda: latent.latent(directory=dataset, model="absent"),
        lambda: create_mask.create_mask(directory=dataset),
        lambda: tagger.tagger(directory=dataset, model="absent"),
    )
    for step in steps:
        with pytest.raises(ValueError, match="leads out of the dataset"):
            step()
    assert everything(tmp_path, but=tmp_path / "none") == before


def test_names_are_portable_and_each_its_own():
    files = [*ODD_NAMES, "new_line.png", "NEW_LINE.jpg", "_con.png"]
    names = [task.name for task in name_images([(name, Path(name)) for name in files])]
    assert len({name.casefold() for name in names}) == len(files)
    assert all(len(part.encode()) < 250 for name in names for part in name.split("/"))


def test_later_steps_list_what_became_bad(tmp_path, canary, model_directory, capsys):
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    source.mkdir()
    bad = bad_pictures(canary)
    for number in range(len(bad) + 1):
        (source / f"{number:02d}.png").write_bytes(encoded())
    assert bucketing.main(["-d", str(source), "-o", str(dataset), *SIZES]) == 0
    for number, content in enumerate(bad.values()):
        (dataset / "images" / f"{number:02d}.png").write_bytes(content)
    capsys.readouterr()
    good = f"{len(bad):02d}"
    network = str(TinyTagger().save(tmp_path / "tagger"))
    commands = {
        "latents": lambda: latent.main(["-d", str(dataset), "-m", str(model_directory)]),
        "mask": lambda: create_mask.main(["-d", str(dataset), "--num_workers", "1"]),
        "captions": lambda: tagger.main(["-d", str(dataset), "-m", network]),
    }
    for folder, command in commands.items():
        assert command() == 1
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        failed = [
            line for line in told.err.splitlines() if line.startswith(str(dataset / "images"))
        ]
        assert len(failed) == len(bad)
        assert {path.stem for path in (dataset / folder).glob("[0-9]*")} == {good}
    assert np.load(dataset / "latents" / f"{good}.npy").ndim == 3
    assert not canary.exists()


def test_a_drawing_is_not_given_to_another_program(tmp_path, canary, monkeypatch):
    program = tmp_path / "gs"  # Ghostscript, as Pillow would find it
    program.write_text(f"#!/bin/sh\ntouch '{canary}'\necho 10\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "drawing.png"
    path.write_bytes(bad_pictures(canary)["postscript.png"])
    with pytest.raises(ValueError, match="is not an image that Pillow reads"):
        open_image(path)
    assert not canary.exists()
