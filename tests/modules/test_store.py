import json
import pickle

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.buckets import BucketBatchSampler
from modules.dataset import ImageDataset, LatentDataset
from modules.store import LocalStore, RemoteStore, open_store
from preprocess.pack import pack

NAMES = {"(16, 24)": ["a", "sub/b", "猫"], "(24, 16)": ["c"]}


@pytest.fixture
def single(tmp_path):
    """A dataset with a file for each latent and caption."""
    directory = tmp_path / "single"
    (directory / "latents" / "sub").mkdir(parents=True)
    (directory / "captions" / "sub").mkdir(parents=True)
    (directory / "buckets.json").write_text(json.dumps(NAMES), encoding="utf-8")
    entries = []
    for key, names in NAMES.items():
        shape = (4, 6, 4) if key == "(16, 24)" else (4, 4, 6)
        for name in names:
            array = np.random.default_rng(len(entries)).standard_normal(shape, dtype=np.float32)
            np.save(directory / "latents" / f"{name}.npy", array)
            caption = f"picture, of, {name}\nanother, {name}\n"
            (directory / "captions" / f"{name}.txt").write_text(caption, encoding="utf-8")
            size = {"original_size": [300 + len(entries), 200], "crop_top_left": [0, 7]}
            entries.append(json.dumps({"name": name, **size}) + "\n")
    (directory / "images.jsonl").write_text("".join(entries), encoding="utf-8")
    return directory


@pytest.fixture
def remote():
    """An address in memory, empty again afterwards."""
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/data"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def upload(directory, address):
    file_system, root = fsspec.url_to_fs(address)
    file_system.put(str(directory), root, recursive=True)
    return address


def assert_equal(one, other):
    assert one.names == other.names
    assert one.buckets == other.buckets
    assert one.read_geometry() == other.read_geometry()
    for epoch in range(3):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        for number in range(len(other)):
            mine, theirs = one[number], other[number]
            assert (mine.name, mine.caption) == (theirs.name, theirs.caption)
            assert (mine.original_size, mine.crop_top_left) == (
                theirs.original_size,
                theirs.crop_top_left,
            )
            assert mine.latents.dtype == theirs.latents.dtype == torch.float32
            assert torch.equal(mine.latents, theirs.latents)


def epochs(dataset, **options):
    sampler = BucketBatchSampler(dataset.buckets, batch_size=2)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **options)
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        found.append([(batch.names, batch.captions, batch.latents) for batch in loader])
    return found


@pytest.mark.parametrize("is_packed", [True, False])
def test_local_packed_and_remote_datasets_give_the_same_samples(single, remote, is_packed):
    options = {"shuffle_caption": True, "caption_dropout": 0.2}
    wanted = LatentDataset(str(single), **options)
    source = single
    if is_packed:
        source = single.parent / "packed"
        pack(directory=single, output=source)
        assert_equal(LatentDataset(str(source), **options), wanted)
    for address in (upload(source, remote), source.as_uri()):
        dataset = LatentDataset(address, **options)
        dataset.check_latent_shapes(4, 4)
        dataset.check_every_shape(4, 4)
        assert_equal(dataset, wanted)
        assert_equal(pickle.loads(pickle.dumps(dataset)), wanted)
        assert dataset.summary() == wanted.summary()
        for workers in (0, 1):
            for mine, theirs in zip(
                epochs(dataset, num_workers=workers), epochs(wanted), strict=True
            ):
                assert [batch[:2] for batch in mine] == [batch[:2] for batch in theirs]
                for (*_, latents), (*_, others) in zip(mine, theirs, strict=True):
                    assert torch.equal(latents, others)


def test_faults_of_a_remote_dataset_are_named(single, remote):
    upload(single, remote)
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/data/latents/c.npy")
    memory.rm("/bucket/data/captions/sub/b.txt")
    with pytest.raises(ValueError, match="memory://bucket/data is not ready") as error:
        LatentDataset(remote)
    assert "latents: 1 of 4 missing: c" in str(error.value)
    assert "captions: 1 of 4 missing: sub/b" in str(error.value)
    memory.pipe("/bucket/data/buckets.json", b"{")
    with pytest.raises(ValueError, match=r"memory://bucket/data/buckets\.json: is not a JSON file"):
        LatentDataset(remote)


def test_what_is_read_locally_only_is_refused(single, remote):
    upload(single, remote)
    for options in ({"mask": True}, {"extras": {"control": "image"}}, {"text_cache": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: for local directories"):
            LatentDataset(remote, **options)
    with pytest.raises(ValueError, match="ImageDataset: for local directories"):
        ImageDataset(remote)


def test_wrong_addresses(remote, tmp_path):
    with pytest.raises(ValueError, match="memory://bucket/none: no such directory"):
        open_store("memory://bucket/none")
    with pytest.raises(ValueError, match="nonsense://x: is no address that fsspec knows"):
        open_store("nonsense://x")
    with pytest.raises(ValueError, match="no such directory"):
        open_store(str(tmp_path / "none"))


def test_an_address_without_its_package_names_it(monkeypatch):
    from fsspec.registry import known_implementations

    absent = {"class": "absent_package.FileSystem", "err": "Install absent_package to do it"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    with pytest.raises(ValueError, match="absent://x: Install absent_package to do it; pip"):
        open_store("absent://x")


def test_stores_read_alike(single, remote):
    upload(single, remote)
    stores = [LocalStore(single), RemoteStore(remote), RemoteStore(single.as_uri())]
    content = (single / "images.jsonl").read_bytes()
    for store in stores:
        assert store.read("images.jsonl") == content
        assert store.read("images.jsonl", 3, 9) == content[3:9]
        assert store.reader("images.jsonl")(3, 9) == content[3:9]
        assert b"".join(store.lines("images.jsonl")) == content
        assert store.is_file("latents/sub/b.npy")
        assert not store.is_file("latents/sub")
        assert not store.is_file("latents/none.npy")
        names = dict.fromkeys(["a", "sub/b", "猫", "c"], ".npy")
        assert store.files_by_name("latents", (".npy",)) == names
        assert store.files_by_name("none", (".npy",)) == {}
        assert store.files_by_name(".", (".jsonl",)) == {"images": ".jsonl"}
        with pytest.raises(OSError, match="none"):
            store.read("none")
