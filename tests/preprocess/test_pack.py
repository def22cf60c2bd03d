import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from modules.dataset import LatentDataset
from modules.shard import Shard
from modules.store import LocalStore
from preprocess import pack as script
from preprocess.caption_folder import CaptionFolder
from preprocess.latent_shards import mark_outdated, write_shard
from preprocess.pack import main, pack
from preprocess.sources import Task, copy_caption

SIZES = {"(16, 24)": [f"tall/{n}" for n in range(5)], "(24, 16)": ["wide", "猫"]}
NAMES = [name for names in SIZES.values() for name in names]


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "buckets.json").write_text(json.dumps(SIZES), encoding="utf-8")
    for seed, name in enumerate(NAMES):
        save(directory, name, seed)
        caption = directory / "captions" / f"{name}.txt"
        caption.parent.mkdir(parents=True, exist_ok=True)
        caption.write_text(f"caption of {name}\nanother", encoding="utf-8")
    return directory


def save(directory, name, seed, dtype=np.float32):
    shape = (4, 6, 4) if name.startswith("tall") else (4, 4, 6)
    path = directory / "latents" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)
    np.save(path, array)
    return array


def samples(directory):
    dataset = LatentDataset(str(directory))
    found = [dataset[number] for number in range(len(dataset))]
    return [(sample.name, sample.caption, sample.latents) for sample in found]


def assert_same(directory, wanted):
    for (name, caption, latents), other in zip(samples(directory), wanted, strict=True):
        assert (name, caption) == other[:2]
        assert torch.equal(latents, other[2])


def files(directory, pattern):
    return sorted(path.name for path in directory.rglob(pattern))


def counts(result):
    return result.done, result.skipped, result.captions, result.removed, len(result.failed)


def test_packed_with_the_files_removed_a_dataset_is_the_same(dataset):
    wanted = samples(dataset)
    assert counts(pack(directory=dataset, remove=True)) == (7, 0, 7, 14, 0)
    assert files(dataset, "*.npy") == files(dataset, "*.txt") == []
    packed = files(dataset, "*.safetensors")
    assert packed == ["16x24-00000.safetensors", "24x16-00001.safetensors"]
    assert_same(dataset, wanted)
    LatentDataset(str(dataset)).check_every_shape(4, 4)
    assert counts(pack(directory=dataset, remove=True)) == (0, 7, 7, 0, 0)
    assert files(dataset, "*.safetensors") == packed
    assert_same(dataset, wanted)


def test_files_are_what_safetensors_reads(dataset):
    pack(directory=dataset)
    path = dataset / "latents_packed" / "24x16-00001.safetensors"
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["names"]) == ["wide", "猫"]
        for row, name in enumerate(["wide", "猫"]):
            array = np.load(dataset / "latents" / f"{name}.npy")
            np.testing.assert_array_equal(file.get_slice("latents")[row], array)


def test_new_and_changed_images_stand_beside_packed_ones(dataset):
    pack(directory=dataset, remove=True)
    content = json.loads((dataset / "buckets.json").read_text(encoding="utf-8"))
    content["(24, 16)"].append("new")
    (dataset / "buckets.json").write_text(json.dumps(content), encoding="utf-8")
    arrays = {"new": save(dataset, "new", 50), "tall/1": save(dataset, "tall/1", 51)}
    (dataset / "captions" / "new.txt").write_text("new", encoding="utf-8")
    (dataset / "captions" / "wide.caption").write_text("other", encoding="utf-8")

    def check():
        found = {name: (caption, latents) for name, caption, latents in samples(dataset)}
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name][1].numpy(), array)
        assert found["new"][0] == "new"
        assert found["wide"][0] == "other"

    check()
    assert counts(pack(directory=dataset)) == (2, 6, 8, 0, 0)
    assert counts(pack(directory=dataset, remove=True)) == (0, 8, 8, 4, 0)
    assert files(dataset, "*.npy") == files(dataset, "*.caption") == []
    check()


def test_files_are_split_by_size(dataset, monkeypatch):
    monkeypatch.setattr(script, "_MIB", 4 * 6 * 4 * 4)  # one row
    wanted = samples(dataset)
    pack(directory=dataset, shard_size=2, remove=True)
    assert len(files(dataset, "*.safetensors")) == 4
    assert_same(dataset, wanted)


def test_a_torn_run_is_taken_up(dataset, monkeypatch):
    monkeypatch.setattr(script, "_MIB", 4 * 6 * 4 * 4)
    wanted = samples(dataset)
    calls = []

    def torn(path, names, rows, **options):
        calls.append(path)
        if len(calls) == 3:
            rows = iter(())  # the file ends behind its header
        write_shard(path, names, rows, **options)

    monkeypatch.setattr(script, "write_shard", torn)
    with pytest.raises(ValueError, match="shorter"):
        pack(directory=dataset, shard_size=1, remove=True)
    assert len(files(dataset, "*.safetensors")) == 2
    assert len(files(dataset, "*.npy")) == 7  # none is removed before all are packed
    assert files(dataset, ".*") == []
    assert_same(dataset, wanted)
    monkeypatch.setattr(script, "write_shard", write_shard)
    assert counts(pack(directory=dataset, shard_size=1, remove=True)) == (5, 2, 7, 14, 0)
    assert_same(dataset, wanted)


def test_a_copy_holds_the_packed_files_alone(dataset, tmp_path):
    (dataset / "images.jsonl").write_text('{"name": "wide"}\n', encoding="utf-8")
    target = tmp_path / "copy"
    assert counts(pack(directory=dataset, output=target)) == (7, 0, 7, 0, 0)
    assert sorted(path.name for path in target.iterdir()) == [
        *("buckets.json", "captions.jsonl", "images.jsonl", "latents_packed"),
    ]
    assert_same(target, samples(dataset))
    pack(directory=dataset, remove=True)
    shutil.rmtree(target)
    assert counts(pack(directory=dataset, output=target)) == (7, 0, 7, 0, 0)  # packed ones, too
    assert_same(target, samples(dataset))
    with pytest.raises(ValueError, match="remove: is for files that are packed in their place"):
        pack(directory=dataset, output=target, remove=True)


def test_a_file_that_differs_is_not_removed(dataset, monkeypatch):
    def spoil(path, names, rows, **options):
        write_shard(path, names, (row + 1 for row in rows), **options)

    monkeypatch.setattr(script, "write_shard", spoil)
    (dataset / "captions" / "wide.caption").write_text("first", encoding="utf-8")
    assert pack(directory=dataset, remove=True).removed == 6  # captions of one text
    assert len(files(dataset, "*.npy")) == 7
    assert files(dataset, "wide.*") == ["wide.caption", "wide.npy", "wide.txt"]


def test_half_precision_stays_and_is_read_as_single(dataset):
    array = save(dataset, "wide", 3, np.float16)
    pack(directory=dataset, remove=True)
    assert len(files(dataset, "*.safetensors")) == 3  # one type in each
    found = {name: latents for name, _, latents in samples(dataset)}
    assert found["wide"].dtype == torch.float32
    np.testing.assert_array_equal(found["wide"].numpy(), array.astype(np.float32))


def test_what_cannot_be_packed_is_listed(dataset, capsys):
    (dataset / "latents" / "wide.npy").unlink()
    (dataset / "latents" / "猫.npy").write_bytes(b"\x93NUMPY")
    save(dataset, "tall/0", 0, np.int32)
    assert main(["-d", str(dataset)]) == 1
    out, err = capsys.readouterr()
    assert "4 latents packed, 0 kept, 3 failed; 7 captions; 0 single files removed" in out
    assert "wide.npy: no such file; run preprocess/latent.py" in err
    assert "猫.npy: can't be read" in err
    assert "int32 can't be packed" in err


def test_damaged_packed_files_are_named(dataset):
    pack(directory=dataset, remove=True)
    path = dataset / "latents_packed" / "16x24-00000.safetensors"
    content = path.read_bytes()
    data = LatentDataset(str(dataset))
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"16x24-00000\.safetensors: is cut short"):
        data[4]
    for damaged in (content[:20], b"", b"\0" * 100, content.replace(b"latents", b"latentz")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no file of packed latents"):
            LatentDataset(str(dataset))


def test_packed_latents_of_another_bucket_are_named(dataset):
    pack(directory=dataset, remove=True)
    moved = {"(16, 24)": NAMES[:4], "(24, 16)": NAMES[4:]}
    (dataset / "buckets.json").write_text(json.dumps(moved), encoding="utf-8")
    with pytest.raises(ValueError, match=r"16x24-00000\.safetensors, tall/4: shape \(4, 6, 4\)"):
        LatentDataset(str(dataset)).check_latent_shapes(4, 4)


def test_captions_in_lines(dataset):
    path = dataset / "captions.jsonl"
    lines = [{"name": "wide", "captions": ["old"]}, {"name": "wide", "captions": ["newer", "x"]}]
    text = "\n".join(json.dumps(line) for line in [*lines, {"name": "else", "captions": []}])
    path.write_text(text, encoding="utf-8")
    (dataset / "captions" / "wide.txt").unlink()
    data = LatentDataset(str(dataset))
    assert data.captions.read(NAMES.index("wide")) == ["newer", "x"]
    assert data.captions.missing == []
    path.write_text(json.dumps({"name": "wide", "captions": "text"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions\.jsonl: captions of wide are not a list"):
        LatentDataset(str(dataset))


def test_latents_of_mirrored_images_are_packed_beside_the_others(dataset, tmp_path):
    shutil.copytree(dataset / "latents", dataset / "latents_flipped")
    array = np.load(dataset / "latents" / "wide.npy")
    np.save(dataset / "latents_flipped" / "wide.npy", array + 1)
    target = tmp_path / "copy"
    assert counts(pack(directory=dataset, output=target)) == (14, 0, 7, 0, 0)
    assert counts(pack(directory=dataset, remove=True)) == (14, 0, 7, 21, 0)
    for directory in (dataset, target):
        data = LatentDataset(str(directory), flip=1.0)
        data.check_every_shape(4, 4)
        number = data.names.index("wide")
        np.testing.assert_array_equal(data[number].latents.numpy(), array + 1)
        np.testing.assert_array_equal(data.whole_sample(number).latents.numpy(), array)


def test_rows_of_an_image_that_changed_no_longer_count(dataset):
    pack(directory=dataset, remove=True)
    mark_outdated(dataset, "latents", "wide")
    with pytest.raises(ValueError, match="latents: 1 of 7 missing: wide; run"):
        LatentDataset(str(dataset))
    array = save(dataset, "wide", 77)
    pack(directory=dataset, remove=True)
    found = {name: latents for name, _, latents in samples(dataset)}
    np.testing.assert_array_equal(found["wide"].numpy(), array)


def test_wrong_arguments(dataset, tmp_path):
    with pytest.raises(ValueError, match="shard_size: 0 is less than 1 MiB"):
        pack(directory=dataset, shard_size=0)
    with pytest.raises(ValueError, match="no such file; run preprocess/bucketing"):
        pack(directory=tmp_path)
    assert str(LocalStore(Path("x"))) == "x"


def test_packed_captions_are_known_to_tagger_and_bucketing(dataset, tmp_path):
    pack(directory=dataset, remove=True)
    folder = CaptionFolder(
        dataset / "captions",
        extension="txt",
        key={},
        dataset=dataset,
        overwrite=False,
        shard=Shard(),
    )
    may_write = {
        name: folder.may_write(Task(name, f"{name}.png", tmp_path / f"{name}.png"))
        for name in ("wide", "fresh")
    }
    assert may_write == {"wide": False, "fresh": True}
    for name in ("wide", "fresh"):
        (tmp_path / f"{name}.txt").write_text("of the source", encoding="utf-8")
        os.utime(tmp_path / f"{name}.txt", ns=(1, 1))
        task = Task(name, f"{name}.png", tmp_path / f"{name}.png")
        copy_caption(task, source=tmp_path, target=dataset)
    assert files(dataset / "captions", "*.txt") == ["fresh.txt"]
