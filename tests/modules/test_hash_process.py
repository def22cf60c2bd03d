"""Files hashed in another process: the same hashes, and an end whatever happens to it."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from pathlib import Path

import pytest

from modules import hash_process
from modules.file_hashes import FileHashes
from modules.hash_process import BatchHashes


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Four batches of two files, of which the last two are another process'."""
    monkeypatch.setattr(hash_process, "SOON", 4)
    files = [tmp_path / f"file {n} é" for n in range(8)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000)
    return [list(map(str, files[n : n + 2])) for n in range(0, 8, 2)]


def expected(batches):
    return [[hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in b] for b in batches]


def test_both_processes_find_the_same(batches, tmp_path):
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        found = [both.sha256(batch) for batch in batches]
        process = both._process
        assert process is not None
        assert process.poll() is None
    assert found == expected(batches)
    assert process.poll() == 0


def test_few_files_start_no_process(batches, tmp_path):
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        for batch in batches[:2]:
            both.sha256(batch)
        assert both._process is None


def test_a_missing_file_has_no_hash_there_either(batches, tmp_path):
    os.remove(batches[3][0])
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        found = [both.sha256(batch) for batch in batches]
    assert found[3][0] is None
    assert found[3][1] == hashlib.sha256(b"\x07" * 1000).hexdigest()


def test_a_process_that_dies_is_done_without(batches, tmp_path):
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        found = [both.sha256(batch) for batch in batches[:3]]
        both._process.kill()
        both._process.wait()
        found.append(both.sha256(batches[3]))
        assert both._process is None
    assert found == expected(batches)


def test_one_that_cannot_be_started_is_done_without(batches, tmp_path, monkeypatch):
    monkeypatch.setattr(hash_process.sys, "executable", str(tmp_path / "none"))
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        assert [both.sha256(batch) for batch in batches] == expected(batches)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows doesn't fork")
def test_a_fork_that_holds_its_input_does_not_keep_it(batches, tmp_path):
    """As a worker of a data loader does that is started meanwhile."""
    with closing(FileHashes(tmp_path / "hashes.sqlite")) as hashes, BatchHashes(hashes) as both:
        for batch in batches:
            both.sha256(batch)
        process, (reader, writer) = both._process, os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent ends it
            os._exit(0)
        os.close(reader)
        both._end()
        assert process.poll() == 0
        os.close(writer)
        os.waitpid(child, 0)
