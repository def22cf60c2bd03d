"""Images that stand several times in an epoch, by a number or by their folders' names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import save_dataset

from modules.buckets import BucketBatchSampler
from modules.dataset import ImageDataset, LatentDataset
from modules.repeats import Repeats, folder_words


@pytest.fixture
def directory(tmp_path):
    return save_dataset(tmp_path / "cats", {(32, 32): 3, (48, 32): 2})


def test_every_image_comes_so_often_and_draws_its_caption_anew(directory):
    dataset = LatentDataset(str(directory), repeats=3, shuffle_caption=True, prompt="a, b, c, d, e")
    assert len(dataset) == len(dataset.names) == 5
    assert [len(bucket) for bucket in dataset.buckets] == [9, 6]
    sampler = BucketBatchSampler(dataset.buckets, batch_size=2)
    drawn = set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        samples = [dataset[index] for batch in sampler.plan(epoch) for index in batch]
        assert Counter(sample.name for sample in samples) == dict.fromkeys(dataset.names, 3)
        drawn |= {(epoch, sample.name, sample.caption) for sample in samples}
    assert len(drawn) > 40  # of 45 draws out of 120 orders
    dataset.check_latent_shapes(4, 4)
    for number in range(5):
        assert (dataset[number].latents == dataset[number + 10].latents).all()
        assert dataset.whole_caption(number + 5) == dataset.whole_caption(number)


def test_an_image_that_comes_again_is_augmented_anew(directory):
    dataset = ImageDataset(str(directory), repeats=20, crop_jitter=0.3)
    drawn = [dataset[index].pixel_values for index in range(0, 100, 5)]
    assert len({float(pixels.sum()) for pixels in drawn}) > 15
    whole = dataset.whole_sample(50).pixel_values
    assert torch.equal(whole, ImageDataset(str(directory))[0].pixel_values)


def test_once_is_as_without_repeats(directory):
    plain, once = LatentDataset(str(directory)), LatentDataset(str(directory), repeats=1)
    assert once.buckets == plain.buckets == [range(3), range(3, 5)]
    assert once.summary() == plain.summary()


def test_summary(directory):
    lines = LatentDataset(str(directory), repeats=10).summary()
    assert lines[:3] == [
        "images per bucket: 32x32: 3, 48x32: 2",
        "repeats: 5 x 10 = 50 images an epoch",
        "captions: 5 of 5",
    ]


def test_folders_say_how_often_and_what(directory, caplog):
    names = ["10_sks dog/a", "10_sks dog/b", "2_cat/sub/a", "park/a", "alone"]
    rename(directory, names)
    (directory / "captions" / "10_sks dog" / "a.caption").unlink()
    (directory / "captions" / "2_cat" / "sub" / "a.caption").unlink()
    dataset = LatentDataset(str(directory), repeats="folders", prefix="x, ")
    times = Counter(dataset[index].name for bucket in dataset.buckets for index in bucket)
    assert [times[name] for name in names] == [10, 10, 2, 1, 1]
    assert [dataset.whole_caption(number) for number in range(5)] == [
        *("x, sks dog", "x, a blue dog", "x, cat", "x, a blue dog", "x, a red cat"),
    ]
    assert dataset.summary()[1:3] == [
        "repeats: 10_sks dog 2 x 10, 2_cat 1 x 2, park 1 x 1, in no folder 1 x 1 = 24 images an "
        "epoch",
        "captions: 3 of 5; 2 without a file take the words of their folder",
    ]
    assert caplog.messages == [
        f"{directory}: repeats: folders: there is no number, as in '10_sks dog', in front of: "
        "park, images in no folder; their images count once"
    ]
    (directory / "captions" / "park" / "a.caption").unlink()
    with pytest.raises(ValueError, match="captions: 1 of 5 missing: park/a; add"):
        LatentDataset(str(directory), repeats="folders")
    with pytest.raises(ValueError, match="captions: 3 of 5 missing: 10_sks dog/a, 2_cat/sub/a, "):
        LatentDataset(str(directory))


def test_words_of_folders():
    names = ("10_sks dog/a", "3_/a", "cat/10_dog/a", "0_dog/a", "10_dog", "10_dog/5_cat/a")
    assert [folder_words(name) for name in names] == ["sks dog", "", "", "", "", "dog"]


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "folder"])
def test_wrong_numbers(directory, repeats):
    message = "is neither a number from 1 on, which is once an epoch, nor folders"
    with pytest.raises(ValueError, match=f"^repeats: {repeats!r} {message}$"):
        Repeats(Path("cats"), ["a"], repeats)


def rename(directory, names):
    """Give the images of a dataset, in order, other names."""
    index = (directory / "buckets.json").read_text(encoding="utf-8")
    for number, name in enumerate(names):
        index = index.replace(f"image{number:03d}", name)
        for folder in ("images", "latents", "captions"):
            for file in list((directory / folder).glob(f"image{number:03d}.*")):
                target = directory / folder / f"{name}{file.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
    (directory / "buckets.json").write_text(index, encoding="utf-8")
