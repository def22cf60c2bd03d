"""Facts of datasets under sd-scripts' names: tags, folders, repeats, buckets."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny

from modules import dataset_facts as facts_module
from modules.dataset import LatentDataset
from modules.dataset_facts import commonest_size, dataset_facts, tag_frequency, trigger_word
from modules.mixture import Mixture


@pytest.fixture
def directory(tmp_path):
    captions = ("cat, Red Hat,  on the mat,", "dog,red hat\ncat", "")
    return tiny.save_dataset(tmp_path / "pets", {(32, 32): 2, (48, 32): 1}, captions=captions)


@pytest.fixture
def folders(directory):
    """Images in sd-scripts' folders, two in one and one in the other."""
    names = {"image000": "3_sks cat", "image001": "3_sks cat", "image002": "1_dog"}
    for name, folder in names.items():
        for kind, suffix in (("latents", ".npy"), ("captions", ".caption")):
            file = directory / kind / f"{name}{suffix}"
            target = directory / kind / folder / file.name
            target.parent.mkdir(exist_ok=True)
            shutil.move(file, target)
    index = json.loads((directory / "buckets.json").read_text(encoding="utf-8"))
    moved = {size: [f"{names[n]}/{n}" for n in listed] for size, listed in index.items()}
    (directory / "buckets.json").write_text(json.dumps(moved), encoding="utf-8")
    return directory


def test_tags_are_counted_as_sd_scripts_counts_them(directory):
    found = tag_frequency(LatentDataset(str(directory)))
    assert found == {"pets": {"red hat": 2, "cat": 1, "on the mat": 1, "dog": 1}}
    assert next(iter(found["pets"])) == "red hat"


def test_captions_count_as_they_are_trained_on(directory):
    dataset = LatentDataset(
        str(directory), prefix="photo, ", trigger_word="sks", tag_dropout=0.9, shuffle_caption=True
    )
    found = tag_frequency(dataset)["pets"]
    assert found["photo"] == found["sks"] == 3
    assert found["red hat"] == 2  # nothing is dropped by chance
    assert trigger_word(dataset) == "sks"


def test_folders_have_their_own_counts_and_repeats(folders):
    found = dataset_facts(LatentDataset(str(folders), repeats="folders"))
    assert json.loads(found["ss_dataset_dirs"]) == {
        "3_sks cat": {"n_repeats": 3, "img_count": 2},
        "1_dog": {"n_repeats": 1, "img_count": 1},
    }
    assert json.loads(found["ss_tag_frequency"])["3_sks cat"]["red hat"] == 2
    assert json.loads(found["ss_tag_frequency"])["1_dog"] == {}
    assert found["ss_num_train_images"] == "7"
    assert json.loads(found["ss_bucket_info"])["buckets"] == {
        "0": {"resolution": [32, 32], "count": 6},
        "1": {"resolution": [48, 32], "count": 1},
    }
    assert found["ss_resolution"] == "(32, 32)"


def test_mixtures_have_all_datasets_by_name(folders, tmp_path):
    other = tiny.save_dataset(tmp_path / "other", {(48, 32): 4}, captions=["a cow"])
    plain = {"path": str(other), "repeats": 2, "caption_dropout": 0.1}
    mixture = Mixture([{"path": str(folders)}, plain], common={"keep_tokens": 1})
    found = dataset_facts(mixture)
    assert json.loads(found["ss_dataset_dirs"]) == {
        "pets/3_sks cat": {"n_repeats": 1, "img_count": 2},
        "pets/1_dog": {"n_repeats": 1, "img_count": 1},
        "other": {"n_repeats": 2, "img_count": 4},
    }
    assert json.loads(found["ss_tag_frequency"])["other"] == {"a cow": 4}
    assert found["ss_num_train_images"] == "11"
    assert commonest_size(mixture) == (48, 32)
    assert found["ss_keep_tokens"] == "1"
    assert "ss_caption_dropout_rate" not in found  # they differ
    assert trigger_word(mixture) is None


def test_the_rarest_tags_are_left_out_of_many(directory, monkeypatch):
    monkeypatch.setattr(facts_module, "MOST_TAGS", 1)
    assert tag_frequency(LatentDataset(str(directory))) == {"pets": {"red hat": 2}}


def test_sentences_are_not_counted(directory, monkeypatch):
    monkeypatch.setattr(facts_module, "_MOST_DISTINCT", 3)
    dataset = LatentDataset(str(directory))
    assert tag_frequency(dataset) is None
    assert "ss_tag_frequency" not in dataset_facts(dataset)


def test_a_dataset_of_ones_own_tells_what_it_can():
    class Plain(list):
        buckets = ([0, 1, 2],)

    assert dataset_facts(Plain()) == {"ss_num_train_images": "3"}
    assert commonest_size(Plain()) is None
