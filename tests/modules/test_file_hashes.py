"""Hashes of files: right, remembered, made again after changes; of directories, what is read."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import closing

import pytest

from modules.file_hashes import FileHashes, cache_folder, find_weights, hash_weights


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.bin"
    write(path, b"one")
    return path


def write(path, content, *, age=100.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def hash_of(path, cache):
    with closing(FileHashes(cache)) as hashes:
        return hashes.sha256(path)


def test_a_file_that_stays_is_read_once(file, tmp_path):
    cache = tmp_path / "cache" / "hashes.sqlite"
    assert hash_of(file, cache) == sha256(b"one")
    stat = file.stat()
    file.write_bytes(b"two")  # of the same size, and with the same time it looks the same
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_of(file, cache) == sha256(b"one")


@pytest.mark.parametrize(("content", "age"), [(b"two", 50.0), (b"three", 100.0)])
def test_another_time_or_size_is_another_file(file, tmp_path, content, age):
    cache = tmp_path / "hashes.sqlite"
    hash_of(file, cache)
    write(file, content, age=age)
    assert hash_of(file, cache) == sha256(content)


def test_a_file_just_written_is_not_remembered(file, tmp_path):
    """It may be written again within the same tick of the clock."""
    write(file, b"one", age=0.0)
    hash_of(file, tmp_path / "hashes.sqlite")
    with closing(sqlite3.connect(tmp_path / "hashes.sqlite")) as known:
        assert known.execute("SELECT count(*) FROM hashes").fetchone() == (0,)


def test_a_cache_that_is_no_database_is_left_alone(file, tmp_path):
    cache = tmp_path / "hashes.sqlite"
    cache.write_bytes(b"no database at all, but long enough to look at" * 100)
    before = cache.read_bytes()
    assert hash_of(file, cache) == sha256(b"one")
    assert cache.read_bytes() == before


def test_a_place_that_cannot_be_written_to_costs_nothing(file):
    assert hash_of(file, file / "hashes.sqlite") == sha256(b"one")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_of(tmp_path / "none", tmp_path / "hashes.sqlite")


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("SD_TRAINER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SD_TRAINER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if os.name != "nt":
        assert cache_folder() == tmp_path / "xdg" / "sd-trainer"


def test_a_directory_is_what_is_read_of_it(tmp_path):
    model = tmp_path / "model"
    unet = model / "unet"
    for name in ("config.json", "a.safetensors", "a.fp16.safetensors", "a.bin", "notes.md"):
        write(unet / name, name.encode())
    write(model / "model_index.json", b"{}")

    def hashed(directory=model):
        with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes:
            return hash_weights(directory, hashes)

    first = hashed()
    others = ("../safety_checker/a.safetensors", ".cache/a.safetensors")
    for unread in ("a.fp16.safetensors", "a.bin", "notes.md", *others):
        write(unet / unread, b"another")
        assert hashed() == first, unread
    moved = model.rename(tmp_path / "elsewhere")
    assert hashed(moved) == first
    seen = {first}
    for name in ("config.json", "a.safetensors", "tokenizer.json"):
        write(moved / "unet" / name, b"another")
        found = hashed(moved)
        assert found not in seen, name
        seen.add(found)


def test_half_precision_counts_where_there_is_no_other(tmp_path):
    write(tmp_path / "model" / "a.fp16.safetensors", b"one")
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes:
        first = hash_weights(tmp_path / "model", hashes)
        write(tmp_path / "model" / "a.fp16.safetensors", b"two", age=50.0)
        assert hash_weights(tmp_path / "model", hashes) != first


def test_weights_are_found_as_the_model_is(tmp_path):
    write(tmp_path / "a.safetensors", b"")
    assert find_weights(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"
    assert find_weights("assets/tiny-sd").is_dir()  # beside main.py, whatever the directory
    assert find_weights("nobody/has-this-model") is None
    assert find_weights(str(tmp_path / "none.safetensors")) is None
