"""The manifest lists what a dataset reads, whatever its kind, and changes when that changes."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import tiny
from PIL import Image

from modules.dataset import ImageDataset, LatentDataset
from modules.file_hashes import FileHashes
from modules.manifest import (
    dataset_files,
    pack_manifest,
    read_manifest,
    total_of,
    unpack_manifest,
    write_manifest,
)
from modules.mixture import Mixture
from preprocess.pack import pack


@pytest.fixture
def directory(tmp_path):
    return tiny.save_dataset(tmp_path / "data", {(32, 32): 2, (48, 32): 1}, side_inputs=True)


@pytest.fixture
def hashes(tmp_path):
    return FileHashes(tmp_path / "hashes.sqlite")


def manifest(dataset, hashes):
    file = io.BytesIO()
    return write_manifest({"dataset": dataset}, file, hashes), file.getvalue()


def test_every_file_that_is_read_and_no_other(directory):
    names = ("image000", "image001", "image002")
    captions = {f"captions/{name}.caption" for name in names}
    latents = {f"latents/{name}.npy" for name in names}
    plain = LatentDataset(str(directory))
    assert set(dataset_files(plain)) == {"buckets.json", *captions, *latents}
    with_inputs = LatentDataset(
        str(directory), mask=True, extras={"control": "image", "pfg": "npz"}, prompt="a cat"
    )
    beside = {f"{key}/{name}" for name in names for key in ("control", "mask", "pfg")}
    found = {path.rpartition(".")[0] for path in dataset_files(with_inputs)} - {"buckets"}
    assert found == beside | {path.removesuffix(".npy") for path in latents}
    images = ImageDataset(str(directory))
    expected = {f"images/{name}.png" for name in names}
    assert set(dataset_files(images)) == {"buckets.json", *captions, *expected}


def test_older_layouts_and_sizes(directory):
    (directory / "images" / "image001.png").rename(directory / "image001.png")
    (directory / "captions" / "image000.caption").unlink()
    (directory / "captions" / "image000.txt").write_text("a cat", encoding="utf-8")
    lines = [
        {"name": f"image00{n}", "original_size": [32, 32], "crop_top_left": [0, 0]}
        for n in range(3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "images.jsonl").write_text(text, encoding="utf-8")
    dataset = ImageDataset(str(directory))
    assert "images.jsonl" not in set(dataset_files(dataset))
    assert dataset.read_geometry()
    assert {"image001.png", "captions/image000.txt", "images.jsonl"} <= set(dataset_files(dataset))


def test_packed_files_are_listed_once(directory):
    pack(directory=directory)
    for folder in ("latents", "captions"):
        shutil.rmtree(directory / folder)
    found = list(dataset_files(LatentDataset(str(directory))))
    assert len(found) == len(set(found))
    assert "captions.jsonl" in found
    packed = {f.relative_to(directory).as_posix() for f in directory.glob("latents_packed/*.saf*")}
    assert packed
    assert packed < set(found)


def test_the_hash_follows_contents_and_not_places(directory, hashes, tmp_path):
    total, lines = manifest(LatentDataset(str(directory)), hashes)
    assert (total.files, total.unread) == (7, 0)
    listed = list(read_manifest(io.BytesIO(lines)))
    assert len(listed) == total.files
    assert (listed[0].section, listed[0].path) == ("dataset", f"{directory}/buckets.json")
    assert listed[0].sha256 == hashes.sha256(directory / "buckets.json")
    assert total_of(lines.splitlines()) == total
    moved = shutil.copytree(directory, tmp_path / "moved")
    assert manifest(LatentDataset(str(moved)), hashes)[0] == total
    seen = {total.sha256}
    for file, content in (("captions/image001.caption", "a cow"), ("latents/image002.npy", None)):
        if content is None:
            shutil.copy(moved / "latents" / "image000.npy", moved / file)
        else:
            (moved / file).write_text(content, encoding="utf-8")
        changed = manifest(LatentDataset(str(moved)), hashes)[0].sha256
        assert changed not in seen, file
        seen.add(changed)


def test_mixtures_list_all_and_priors_have_a_section(directory, hashes, tmp_path):
    other = tiny.save_dataset(tmp_path / "other", {(32, 32): 1}, seed=1)
    mixture = Mixture([{"path": str(directory)}, {"path": str(other), "prompt": "a dog"}])
    file = io.BytesIO()
    prior = LatentDataset(str(other))
    total = write_manifest({"dataset": mixture, "prior": prior}, file, hashes)
    assert total.files == 7 + 2 + 3
    file.seek(0)
    found = [(listed.section, listed.path) for listed in read_manifest(file)]
    assert ("dataset", f"{directory}/latents/image001.npy") in found
    assert found.count(("dataset", f"{other}/latents/image000.npy")) == 1
    assert ("prior", f"{other}/captions/image000.caption") in found


def test_a_dataset_of_ones_own_lists_nothing(hashes):
    assert manifest([Image.new("RGB", (8, 8))], hashes) == (None, b"")


def test_a_file_that_is_gone_is_unread(directory, hashes):
    dataset = LatentDataset(str(directory))
    (directory / "latents" / "image001.npy").unlink()
    total, lines = manifest(dataset, hashes)
    assert (total.files, total.unread) == (7, 1)
    unread = [listed.file for listed in read_manifest(io.BytesIO(lines)) if listed.sha256 is None]
    assert unread == ["latents/image001.npy"]


def test_a_manifest_fits_into_metadata(directory, hashes):
    _, lines = manifest(LatentDataset(str(directory)), hashes)
    text = pack_manifest(lines)
    assert text.isascii()
    assert len(text) < len(lines)
    assert unpack_manifest(text) == lines
    for broken in (text[:-5], "?", pack_manifest(lines).lower()):
        with pytest.raises(ValueError, match="the manifest can't be read"):
            unpack_manifest(broken)
    with pytest.raises(ValueError, match="which is none"):
        list(read_manifest([b"[1, 2]\n"]))
