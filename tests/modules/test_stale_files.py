"""Notes of images and what they were made of, as they may be damaged, many or another program's."""

from __future__ import annotations

import json
import os

import numpy as np
import photos
import pytest

from modules.cache_notes import CacheNotes
from modules.caption_lengths import describe_truncated
from modules.dataset import LatentDataset
from modules.image_records import ImageRecords
from modules.stale_files import check_freshness, find_edited_sources, find_stale
from modules.store import LocalStore


@pytest.fixture
def data(tmp_path, model_directory):
    return photos.prepare(photos.take(tmp_path / "photos"), tmp_path / "data", model_directory)


def rewrite(path, change):
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(change(e)) + "\n" for e in entries), encoding="utf-8")


def test_what_another_program_noted_is_not_known(data):
    for broken in ({"image_sha256": "xyz"}, {"bytes": "many"}, {"mtime_ns": 2**80}):
        rewrite(data / "latents" / "index.jsonl", lambda entry, broken=broken: entry | broken)
        dataset = LatentDataset(str(data))
        assert not dataset.notes[0].known.any()


def test_columns_say_what_the_lines_say(data):
    names = LatentDataset(str(data)).names
    store = LocalStore(data)
    notes, records = CacheNotes(store, "latents", names), ImageRecords(store, names)
    lines = (data / "images.jsonl").read_text(encoding="utf-8").splitlines()
    entries = {entry["name"]: entry for entry in map(json.loads, lines)}
    for number, name in enumerate(names):
        entry = entries[name]
        assert records.source(number) == entry["source"] == f"{name}.png"
        assert records.digests[number].tobytes().hex() == entry["sha256"]
        assert records.originals[number].tolist() == entry["original_size"]
        assert notes.sizes[number] == (data / "images" / f"{name}.png").stat().st_size
    assert notes.which("dtype") == ["fp32"]
    assert not notes.differs(notes).any()


def test_sources_of_other_names_are_found(data):
    source = data.parent / "photos"
    (source / "photo0.png").rename(source / "renamed.png")
    rewrite(
        data / "images.jsonl",
        lambda e: e | {"source": e["source"].replace("photo0", "renamed")},
    )
    assert find_edited_sources(LatentDataset(str(data))) == []
    photos.draw(source / "renamed.png", seed=77, size=(96, 72))
    with pytest.raises(ValueError, match="edited since: photo0"):
        LatentDataset(str(data))


def test_of_many_images_with_new_dates_some_are_read(data, caplog):
    for file in (data / "images").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(5, 5))
    dataset = LatentDataset(str(data), allow_stale=True)
    assert "4 of 4 are of images that were edited" in caplog.text
    assert len(find_stale(dataset, dataset.notes, most=2)["latents"]) == 2
    dataset.allow_stale = False
    with pytest.raises(ValueError, match="latents: 4 of 4"):
        check_freshness(dataset)


def test_what_was_made_of_the_source_itself_is_not_stale(data):
    sha = {}
    for line in (data / "images.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        sha[entry["name"]] = {"image_sha256": entry["sha256"], "bytes": entry["bytes"]}
    rewrite(data / "latents" / "index.jsonl", lambda e: e | sha[e["name"]])
    dataset = LatentDataset(str(data))
    assert find_stale(dataset, dataset.notes) == {}


def test_captions_that_are_cut_are_counted_in_part_of_a_large_dataset(data, model_directory):
    from modules import models

    model = models.load(str(model_directory), weights=False)
    dataset = LatentDataset(str(data), prompt="cat " * 30)
    assert "of 4 of 4 are" in describe_truncated(model, dataset)
    told = describe_truncated(model, dataset, most=2)
    assert "of 2 of 2 that were looked at are" in told


def test_notes_cost_little_memory(data):
    notes = LatentDataset(str(data)).notes[0]
    held = sum(v.nbytes for v in vars(notes).values() if isinstance(v, np.ndarray))
    assert held == 52 * 4
