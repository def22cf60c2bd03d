"""Journals: torn lines, and parts that several processes write without a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.journal import Journal
from modules.shard import Shard

ROOT = Path(__file__).parent.parent.parent
NAMES = [f"folder/image{n:04d}" for n in range(400)]
WRITER = """
import sys
from pathlib import Path
from modules.journal import Journal
from modules.shard import Shard
shard = Shard.parse(sys.argv[2])
journal = Journal(Path(sys.argv[1]), shard)
journal.rewrite()
print("ready", flush=True)
sys.stdin.readline()
for n in range(400):
    name = f"folder/image{n:04d}"
    if shard.owns(name):
        journal.append([{"name": name, "by": sys.argv[2], "long": "x" * 3000}])
journal.rewrite()
"""


def start_writer(path: Path, shard: str) -> subprocess.Popen:
    """A process that adds a shard's entries when it is sent a line."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), shard],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )


def test_journal_survives_a_torn_line(tmp_path):
    journal = Journal(tmp_path / "index.jsonl")
    journal.append([{"name": "b", "size": 1}, {"name": "猫", "size": 2}])
    journal.append([{"name": "b", "size": 3}])
    content = journal.path.read_bytes()
    for length in range(len(content) - 1, content.rindex(b"\n", 0, -1), -1):
        journal.path.write_bytes(content[:length])
        sizes = {name: entry["size"] for name, entry in Journal(journal.path).entries.items()}
        # Without its newline alone the last line is whole.
        assert sizes == {"b": 3 if length == len(content) - 1 else 1, "猫": 2}
    again = Journal(journal.path)
    again.rewrite()
    again.append([{"name": "a", "size": 4}])
    assert set(Journal(journal.path).entries) == {"a", "b", "猫"}


def test_journal_names_a_bad_line(tmp_path):
    path = tmp_path / "index.jsonl"
    path.write_text('{"name": "a"}\n[1]\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"index\.jsonl, line 2"):
        Journal(path)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_name_belongs_to_one_shard(count):
    owners = [[s for s in range(1, count + 1) if Shard(s, count).owns(name)] for name in NAMES]
    assert all(len(owner) == 1 for owner in owners)
    sizes = [owners.count([s]) for s in range(1, count + 1)]
    assert min(sizes) > 0.6 * len(NAMES) / count


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/0", "-1/2", ""])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match="write 1/4, 2/4, 3/4 or 4/4"):
        Shard.parse(text)


def test_processes_that_write_at_once_lose_and_tear_nothing(tmp_path):
    path = tmp_path / "index.jsonl"
    Journal(path).append([{"name": NAMES[0], "by": "an earlier run"}, {"name": "gone", "by": ""}])
    shards = ["1/3", "2/3", "3/3"]
    writers = [start_writer(path, shard) for shard in shards]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = Journal(path).entries  # whatever is there by now is whole
        assert all(len(e["long"]) == 3000 for e in found.values() if "long" in e)
        reads += 1
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert reads > 1
    whole = Journal(path)
    assert set(whole.entries) == {*NAMES, "gone"}
    for name in NAMES:
        owner = next(shard for shard in shards if Shard.parse(shard).owns(name))
        assert whole.entries[name]["by"] == owner
    whole.rewrite()
    assert [file.name for file in tmp_path.iterdir()] == ["index.jsonl"]
    assert Journal(path).entries == whole.entries


def test_a_killed_shard_goes_on(tmp_path):
    path = tmp_path / "index.jsonl"
    other = Journal(path, Shard(2, 2))
    other.append([{"name": name} for name in NAMES if Shard(2, 2).owns(name)])
    own = [name for name in NAMES if Shard(1, 2).owns(name)]
    killed = Journal(path, Shard(1, 2))
    killed.append([{"name": name} for name in own[:10]])
    part = tmp_path / "index.1of2.jsonl"
    part.write_bytes(part.read_bytes()[:-4])
    again = Journal(path, Shard(1, 2))
    assert set(again.entries) == set(own[:9])
    again.append([{"name": name} for name in own[9:]])
    assert set(Journal(path).entries) == set(NAMES)
    assert all(json.loads(line) for line in part.read_text().splitlines())


def test_what_a_shard_removes_is_gone_for_all(tmp_path):
    path = tmp_path / "index.jsonl"
    Journal(path).append([{"name": name} for name in NAMES])
    part = Journal(path, Shard(1, 2))
    gone = next(iter(part.entries))
    del part.entries[gone]
    part.rewrite()
    assert gone not in Journal(path, Shard(1, 2)).entries
    whole = Journal(path)
    assert set(whole.entries) == set(NAMES) - {gone}
    whole.rewrite()
    assert set(Journal(path).entries) == set(NAMES) - {gone}


def test_a_part_that_grows_while_the_whole_is_written_is_kept(tmp_path):
    path = tmp_path / "index.jsonl"
    part = Journal(path, Shard(1, 1000))
    own = [name for name in map(str, range(9000)) if Shard(1, 1000).owns(name)]
    part.append([{"name": own[0]}])
    whole = Journal(path)
    part.append([{"name": own[1]}])
    whole.rewrite()
    assert set(Journal(path).entries) == {own[0], own[1]}


def test_parts_of_another_split_count_too(tmp_path):
    path = tmp_path / "index.jsonl"
    for number in range(1, 5):
        shard = Shard(number, 4)
        Journal(path, shard).append([{"name": name, "n": 4} for name in NAMES if shard.owns(name)])
    known = {n for s in (Shard(1, 2), Shard(2, 2)) for n in Journal(path, s).entries}
    assert known == set(NAMES)
