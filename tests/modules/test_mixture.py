"""Several datasets in one: which images come how often, in which batches, with what weight."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import tiny_inpaint
import torch
from tiny import save_dataset
from torch.utils.data import Dataset

from modules.batch import Sample, collate
from modules.buckets import BucketBatchSampler
from modules.dataset import LatentDataset
from modules.loading import make_source, step_groups
from modules.mixture import Mixture

CATS = {(32, 32): 3, (48, 32): 2}
DOGS = {(32, 32): 4, (32, 48): 1}


@pytest.fixture
def cats(tmp_path):
    return save_dataset(tmp_path / "cats", CATS, captions=["a cat"])


@pytest.fixture
def dogs(tmp_path):
    return save_dataset(tmp_path / "dogs", DOGS, captions=["a dog"], seed=1)


def entry(directory, **values):
    return {"path": str(directory), **values}


def names_of(mixture, epoch, **options):
    """Names of an epoch's images, by the batches of `BucketBatchSampler`."""
    sampler = BucketBatchSampler(mixture.buckets, batch_size=2, **options)
    sampler.set_epoch(epoch)
    return [[mixture[index].name for index in batch] for batch in sampler]


def test_every_image_comes_exactly_so_often(cats, dogs):
    mixture = Mixture([entry(cats, repeats=3), entry(dogs), entry(cats, repeats=2, prefix="x ")])
    expected = {
        **{f"cats/image{number:03d}": 3 for number in range(5)},
        **{f"dogs/image{number:03d}": 1 for number in range(5)},
        **{f"cats-2/image{number:03d}": 2 for number in range(5)},
    }
    assert mixture.names == list(expected)
    assert len(mixture) == 15
    mixed = 0
    for epoch in range(3):
        mixture.set_epoch(epoch)
        batches = names_of(mixture, epoch)
        assert Counter(name for batch in batches for name in batch) == expected
        mixed += sum(len({name.partition("/")[0] for name in batch}) > 1 for batch in batches)
        ranks = [names_of(mixture, epoch, rank=rank, world_size=2) for rank in range(2)]
        # A rank without an image runs along with one that counts for the other rank.
        sampler = BucketBatchSampler(mixture.buckets, batch_size=2, world_size=2)
        short = sum(len(batch) == 1 for batch in sampler.plan(epoch))
        shared = Counter(name for batches in ranks for batch in batches for name in batch)
        assert shared >= Counter(expected)
        assert shared.total() == sum(expected.values()) + short
    assert mixed > 5


def test_once_each_is_one_merged_dataset(cats, dogs, tmp_path):
    merged = tmp_path / "merged"
    index: dict[str, list[str]] = {}
    for directory in (cats, dogs):
        for size, names in json.loads((directory / "buckets.json").read_text("utf-8")).items():
            index.setdefault(size, []).extend(f"{directory.name}/{name}" for name in names)
        for folder in ("latents", "captions"):
            shutil.copytree(directory / folder, merged / folder / directory.name)
    (merged / "buckets.json").write_text(json.dumps(dict(sorted(index.items()))), encoding="utf-8")
    one = LatentDataset(str(merged), prefix="x, ")
    mixture = Mixture([entry(cats), entry(dogs)], common={"prefix": "x, "})
    assert mixture.bucket_sizes == one.bucket_sizes
    batches = []
    for dataset in (mixture, one):
        sampler = BucketBatchSampler(dataset.buckets, batch_size=3, shuffle=False)
        batches.append([collate([dataset[index] for index in batch]) for batch in sampler])
    for ours, theirs in zip(*batches, strict=True):
        assert ours.names == theirs.names
        assert ours.captions == theirs.captions
        assert torch.equal(ours.latents, theirs.latents)
        assert ours.loss_weight is theirs.loss_weight is None


def test_weights_go_with_their_images(cats, dogs):
    mixture = Mixture([entry(cats, loss_weight=0.25), entry(dogs, loss_weight=3)])
    batch = collate([mixture[0], mixture[7]])
    assert batch.names == ["cats/image000", "dogs/image002"]
    assert batch.loss_weight.tolist() == [0.25, 3.0]


def test_an_image_that_comes_again_draws_anew_and_datasets_draw_apart(cats, dogs):
    options = {"prompt": "a, b, c, d, e, f", "shuffle_caption": True}
    mixture = Mixture([entry(cats, repeats=4), entry(dogs, repeats=4)], common=options)
    captions = {mixture[index].caption for bucket in mixture.buckets for index in bucket}
    assert len(captions) > 34  # 40 draws out of 720 orders
    assert mixture.whole_caption(0) == mixture.whole_caption(10) == "a, b, c, d, e, f"
    whole = mixture.whole_sample(17)
    assert (whole.name, whole.caption) == ("dogs/image002", "a, b, c, d, e, f")
    before = [mixture.caption(index) for index in range(40)]
    mixture.set_epoch(1)
    assert [mixture.caption(index) for index in range(40)] != before
    mixture.set_epoch(0)
    assert [mixture.caption(index) for index in range(40)] == before


def test_groups_of_steps_and_worker_processes(cats, dogs):
    """Workers that live on see the epoch change."""
    options = {"prompt": "a, b, c, d, e, f", "shuffle_caption": True}
    mixture = Mixture([entry(cats, repeats=2), entry(dogs)], common=options)
    sampler = BucketBatchSampler(mixture.buckets, batch_size=2)
    captions = []
    for num_workers in (0, 2):
        source = make_source(mixture, sampler, num_workers=num_workers)
        groups = step_groups(source, gradient_accumulation_steps=3)
        captions.append([])
        for _ in range(3):
            seen, batches = Counter(), 0
            while batches < len(sampler):
                for part in next(groups):
                    seen.update(part.batch.names)
                    captions[-1] += part.batch.captions
                    batches += 1
            assert batches == len(sampler)
            assert seen == {name: 2 if name.startswith("cats") else 1 for name in mixture.names}
    assert captions[0] == captions[1]
    assert len(set(captions[0])) > 35  # of 45


def test_pixels_and_latents_have_batches_of_their_own(cats, dogs):
    pixels = "modules.dataset.ImageDataset"
    mixture = Mixture([entry(cats), entry(dogs, module=pixels)])
    assert mixture.bucket_sizes == [(32, 32), (32, 32), (32, 48), (48, 32)]
    for bucket in mixture.buckets:
        collate([mixture[index] for index in bucket])
    assert mixture.summary()[:3] == [
        "10 images, 2 datasets: cats 5 x 1, dogs 5 x 1 = 10 an epoch",
        "images per bucket: 32x32: 7, 32x48: 1, 48x32: 2",
        "not mixed in a batch, since they hold other things: cats (latents); dogs (pixel_values)",
    ]


def test_sizes_of_images(cats, dogs, caplog):
    def note_sizes(directory):
        names = [f"image{number:03d}" for number in range(5)]
        lines = [
            json.dumps({"name": name, "original_size": [90, 60], "crop_top_left": [0, 2]})
            for name in names
        ]
        (directory / "images.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    mixture = Mixture([entry(cats, repeats=2), entry(dogs)])
    assert not mixture.read_geometry()
    assert caplog.messages == []
    note_sizes(cats)
    mixture = Mixture([entry(cats, repeats=2), entry(dogs)])
    assert mixture.read_geometry()
    assert caplog.messages[0].startswith("dogs: sizes and crops of the images are not known")
    assert (mixture[0].original_size, mixture[5].original_size) == ((60, 90), None)
    for bucket in mixture.buckets:
        collate([mixture[index] for index in bucket])
    note_sizes(dogs)
    mixture = Mixture([entry(cats, repeats=2), entry(dogs)])
    assert mixture.read_geometry()
    assert mixture[5].crop_top_left == (0, 2)
    assert len(mixture.buckets) == 3


def test_summary(cats, dogs):
    mixture = Mixture([entry(cats, repeats=10), entry(dogs, loss_weight=0.5)])
    assert mixture.summary()[:4] == [
        "10 images, 2 datasets: cats 5 x 10, dogs 5 x 1 (loss x 0.5) = 55 an epoch",
        "images per bucket: 32x32: 7, 32x48: 1, 48x32: 2",
        "cats: images per bucket: 32x32: 3, 48x32: 2",
        "cats: repeats: 5 x 10 = 50 images an epoch",
    ]


def test_names_are_told_apart(cats, tmp_path):
    other = save_dataset(tmp_path / "more" / "cats", {(32, 32): 1})
    mixture = Mixture([entry(cats), entry(other)])
    assert [part.name for part in mixture.parts] == [f"{tmp_path.name}/cats", "more/cats"]
    assert len(set(mixture.names)) == 6


class Plain(Dataset):
    """Two images without buckets, as a person's own dataset gives them."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = torch.zeros(3, 32, 32)
        return Sample(name=f"plain{index}", caption="plain", pixel_values=image)


def test_a_dataset_of_ones_own(cats):
    pixels = "modules.dataset.ImageDataset"
    mixture = Mixture([entry(cats, module=pixels, repeats=2), {"module": f"{__name__}.Plain"}])
    assert mixture.names[-2:] == [f"{__name__}.Plain/0", f"{__name__}.Plain/1"]
    assert mixture.bucket_sizes == [(32, 32), (48, 32)]
    assert [len(bucket) for bucket in mixture.buckets] == [8, 4]
    assert mixture.whole_caption(6) == mixture.caption(6) == "plain"
    assert collate([mixture[index] for index in mixture.buckets[0]]).pixel_values.shape[0] == 8


def test_a_model_is_shown_a_sample_of_each(cats, dogs):
    images = {"module": "modules.dataset.ImageDataset"}
    both = Mixture([entry(cats, **images), entry(dogs, **images)])
    assert [sample.name for sample in both.first_samples()] == ["cats/image000", "dogs/image000"]
    model = tiny_inpaint.make_sd()
    model.check_dataset(both)
    with pytest.raises(ValueError, match=r"^dogs/image000: has no pixel_values, and an"):
        model.check_dataset(Mixture([entry(cats, **images), entry(dogs)]))


def test_side_inputs_have_to_agree(tmp_path):
    first = save_dataset(tmp_path / "a", side_inputs=True)
    second = save_dataset(tmp_path / "b", side_inputs=True, features=8)
    third = save_dataset(tmp_path / "c", side_inputs=True)
    both = {"extras": {"control": "image", "pfg": "npz"}}
    with pytest.raises(ValueError, match="the datasets don't fit together") as error:
        Mixture([entry(first, **both), entry(second, **both), entry(third)])
    assert str(error.value).splitlines()[1:] == [
        "  c: has no control, but a, b has; add it to its extras, or take control out of the "
        "others'",
        "  c: has no pfg, but a, b has; add it to its extras, or take pfg out of the others'",
        "  b: its pfg has shape (8,), that of a (12,); make both with one tagger",
    ]
    mixture = Mixture([entry(first, mask=True, **both), entry(third, **both)])
    assert mixture.provides == {"control", "pfg"}  # a mask only one of them has
    batch = collate([mixture[0], mixture[4]])
    assert batch.mask[1].min() == 1
    assert mixture.origin("pfg") == {}
    (third / "pfg" / "tagger.json").write_text('{"tagger": "x"}', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"^pfg: that of c was made by \{'tagger': 'x'}, that of a"
    ):
        mixture.origin("pfg")


def test_faults_of_all_datasets_are_listed(cats, dogs, tmp_path):
    (cats / "latents" / "image000.npy").unlink()
    with pytest.raises(ValueError, match="missing") as error:
        Mixture([entry(cats), entry(dogs), entry(tmp_path / "none")])
    assert str(error.value).splitlines() == [
        f"datasets.0: {cats} is not ready for training:",
        "  latents: 1 of 5 missing: image000; run preprocess/latent.py",
        f"datasets.2: {tmp_path / 'none'}: no such directory",
    ]
    with pytest.raises(ValueError, match=r"^dogs: .*\n.* shape \(4, 8, 8\) is not bucket"):
        Mixture([entry(dogs)]).check_latent_shapes(8, 4)


FAULTS = [
    (
        {"datasets": [{"path": "a"}, {"path": "b", "prefx": "x"}]},
        "dataset.args.datasets.1.prefx: modules.dataset.LatentDataset takes no argument 'prefx'; "
        "did you mean 'prefix'?",
    ),
    (
        {"datasets": [{"path": "a", "weight": 2}]},
        "dataset.args.datasets.0.weight: modules.dataset.LatentDataset takes no argument 'weight'; "
        "did you mean 'loss_weight'?",
    ),
    (
        {"datasets": [{"path": "a", "num_repeats": 2}]},
        "dataset.args.datasets.0.num_repeats: modules.dataset.LatentDataset takes no argument "
        "'num_repeats'; did you mean 'repeats'?",
    ),
    (
        {"datasets": [{"path": "a", "repeats": "folder"}]},
        "dataset.args.datasets.0.repeats: 'folder' is not one of 'folders'; did you mean "
        "'folders'?",
    ),
    (
        {"datasets": [{"path": "a", "loss_weight": -1}]},
        "dataset.args.datasets.0.loss_weight: -1.0 is out of range; it must be at least 0",
    ),
    (
        {"datasets": [{"prefix": "x"}]},
        "dataset.args.datasets.0.path: is missing; modules.dataset.LatentDataset needs it",
    ),
    (
        {"datasets": [{"module": "modules.dataset.LatentDatast", "path": "a"}]},
        "dataset.args.datasets.0.module: modules.dataset has no 'LatentDatast'; did you mean "
        "'LatentDataset'?",
    ),
    (
        {"datasets": [{"args": {"path": "a"}}]},
        "dataset.args.datasets.0.args: write the arguments beside `path`, without `args:`",
    ),
    (
        {"datasets": [{"path": "a"}, {"path": "b"}], "common": {"mask": "yes"}},
        "dataset.args.common.mask: 'yes' is not true or false",
    ),
    ({"datasets": []}, "dataset.args.datasets: is empty; list at least one, as `- path: "),
]


@pytest.mark.parametrize(("args", "message"), FAULTS)
def test_faults_of_entries(args, message):
    faults = Mixture.find_faults("dataset", args)
    assert faults[0].startswith(message)
    with pytest.raises(ValueError, match="the entries of a mixture are wrong"):
        Mixture(**args)
