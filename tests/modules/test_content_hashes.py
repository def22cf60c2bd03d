"""What is hashed of an image, and what tells images apart that are never the same twice."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import tiny
import torch
from torch.utils.data import Dataset

from modules.batch import Sample
from modules.content_hashes import content_hashes
from modules.dataset import ImageDataset, LatentDataset
from preprocess.pack import pack


class Plain(Dataset):
    """Images of a person's own class, whose n-th shows `values[n]` and may be mirrored."""

    def __init__(self, values, *, flip=None):
        self.values = values
        self.flip = flip

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        latents = torch.arange(16.0).reshape(1, 4, 4) + self.values[index]
        if self.flip is not None and self.flip() < 0.5:
            latents = latents.flip(-1)
        return Sample(name=f"name{self.values[index]}", caption="", latents=latents)


def test_latents_are_hashed_alike_single_and_packed(dataset_directory, tmp_path):
    single = LatentDataset(str(dataset_directory))
    pack(directory=dataset_directory, output=tmp_path / "packed")
    packed = LatentDataset(str(tmp_path / "packed"))
    hashes = content_hashes(single)
    assert len(set(hashes)) == 8
    by_name = dict(zip(packed.names, content_hashes(packed), strict=True))
    assert [by_name[name] for name in single.names] == hashes
    values = np.load(dataset_directory / "latents" / "image000.npy")
    assert hashes[0] == hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def test_images_jsonl_stands_for_what_it_knows(tmp_path):
    directory = tiny.save_dataset(tmp_path / "data")
    read = content_hashes(ImageDataset(str(directory)))
    lines = [{"name": "image001", "sha256": "ab" * 32}, {"name": "image002"}, {"name": "gone"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "images.jsonl").write_text(text, encoding="utf-8")
    for kind in (ImageDataset, LatentDataset):
        assert content_hashes(kind(str(directory)))[1] == "ab" * 32
    assert content_hashes(ImageDataset(str(directory))) == [read[0], "ab" * 32, *read[2:]]


def test_what_is_drawn_for_a_plain_dataset_does_not_matter(caplog):
    values = [3, 1, 4, 5, 9, 2, 6]
    draws = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.random}
    for flip in draws.values():
        torch.manual_seed(0)
        hashes = content_hashes(Plain(values, flip=flip))
        assert len(set(hashes)) == 7
        torch.manual_seed(1)
        assert content_hashes(Plain(values[::-1], flip=flip)) == hashes[::-1]
    assert "told apart by their names" not in caplog.text


def test_images_that_are_never_the_same_go_by_their_names(caplog):
    generator = np.random.default_rng()  # of its own: nothing seeds it again
    with caplog.at_level(logging.WARNING):
        hashes = content_hashes(Plain(list(range(8)), flip=generator.random))
    assert "Plain: images differ each time that they are read" in caplog.text
    assert hashes == [hashlib.sha256(f"name{n}".encode()).hexdigest() for n in range(8)]


def test_random_states_stay(dataset_directory):
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = torch.rand(3), np.random.random(3)
    torch.manual_seed(5)
    np.random.seed(5)
    content_hashes(Plain([1, 2], flip=lambda: torch.rand(()).item() + np.random.random()))
    assert torch.equal(torch.rand(3), wanted[0])
    assert (np.random.random(3) == wanted[1]).all()
