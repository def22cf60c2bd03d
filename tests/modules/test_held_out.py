"""Which images are held out, and that none of them is trained on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import main
from modules.buckets import BucketBatchSampler
from modules.config import load
from modules.content_hashes import content_hashes
from modules.dataset import LatentDataset
from modules.errors import ConfigError
from modules.held_out import HeldOut, hold_out
from modules.mixture import Mixture
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> Path:
    """Forty images in two buckets; tests don't write to it."""
    return tiny.save_dataset(
        tmp_path_factory.mktemp("forty") / "forty", {(32, 32): 25, (48, 32): 15}
    )


def held_out_of(path: Path, fraction: float = 0.3, **options) -> set[str]:
    """Hashes of what is held out of a dataset."""
    return set(hold_out(LatentDataset(str(path), **options), fraction).hashes)


def rename(source: Path, target: Path) -> dict[str, list[str]]:
    """Copy a dataset with other names in another order; returns its buckets."""
    shutil.copytree(source, target)
    buckets = json.loads((source / "buckets.json").read_text(encoding="utf-8"))
    renamed = {size: [f"z{99 - int(n[5:]):03d}" for n in names] for size, names in buckets.items()}
    renamed = {size: names[::-1] for size, names in renamed.items()}
    for file in [file for file in target.rglob("image*.*") if file.is_file()]:
        file.rename(file.with_name(f"z{99 - int(file.stem[5:]):03d}{file.suffix}"))
    (target / "buckets.json").write_text(json.dumps(renamed), encoding="utf-8")
    return renamed


def test_about_the_part_that_is_asked_for(forty):
    counts = [len(held_out_of(forty, part)) for part in (0.1, 0.3, 0.5, 0.8)]
    assert counts == sorted(counts)
    assert all(abs(n - 40 * f) < 8 for n, f in zip(counts, (0.1, 0.3, 0.5, 0.8), strict=True))
    assert held_out_of(forty, 0.1) < held_out_of(forty, 0.3) < held_out_of(forty, 0.5)


def test_names_order_and_other_images_have_no_say(forty, tmp_path):
    before = held_out_of(forty)
    buckets = rename(forty, tmp_path / "renamed")
    assert held_out_of(tmp_path / "renamed") == before
    more = tiny.save_dataset(tmp_path / "more", {(32, 32): 30}, seed=7)
    for folder in ("latents", "captions"):
        for file in (more / folder).iterdir():
            shutil.copy(file, tmp_path / "renamed" / folder / file.name)
    added = json.loads((more / "buckets.json").read_text(encoding="utf-8"))["(32, 32)"]
    buckets["(32, 32)"] = added + buckets["(32, 32)"]
    text = json.dumps(buckets)
    (tmp_path / "renamed" / "buckets.json").write_text(text, encoding="utf-8")
    after = held_out_of(tmp_path / "renamed")
    assert before < after
    old = set(content_hashes(LatentDataset(str(forty))))
    assert after & old == before


def test_copies_of_an_image_are_on_one_side(forty, tmp_path):
    shutil.copytree(forty, tmp_path / "data")
    buckets = json.loads((forty / "buckets.json").read_text(encoding="utf-8"))
    for names in buckets.values():
        for name in list(names):
            for folder, ending in (("latents", ".npy"), ("captions", ".caption")):
                file = tmp_path / "data" / folder / (name + ending)
                shutil.copy(file, file.with_name(f"copy_{name}{ending}"))
            names.append(f"copy_{name}")
    (tmp_path / "data" / "buckets.json").write_text(json.dumps(buckets), encoding="utf-8")
    dataset = LatentDataset(str(tmp_path / "data"))
    split = hold_out(dataset, 0.3)
    held = {dataset.names[number] for number in split.measured}
    assert split.count == 2 * len(held_out_of(forty))
    assert {f"copy_{name}" in held for name in held if name[:4] != "copy"} == {True}


@pytest.mark.parametrize("repeats", [1, 3])
def test_what_remains_is_trained_on_as_often_as_before(forty, repeats):
    dataset = LatentDataset(str(forty), repeats=repeats)
    split = hold_out(dataset, 0.3)
    remaining = [index for bucket in split.buckets for index in bucket]
    counts = np.bincount([index % 40 for index in remaining], minlength=40)
    held = np.isin(np.arange(40), split.measured)
    assert set(counts[held]) == {0}
    assert set(counts[~held]) == {repeats}
    assert set(split.hashes) == held_out_of(forty)
    assert [len(set(np.asarray(b) % 40)) for b in dataset.buckets] == [25, 15]


def test_a_mixture_is_split_as_its_datasets_are(forty, tmp_path):
    other = tiny.save_dataset(tmp_path / "other", {(32, 32): 20}, seed=3)
    mixture = Mixture([{"path": str(forty), "repeats": 2}, {"path": str(other), "repeats": 3}])
    split = hold_out(mixture, 0.3)
    assert set(split.hashes) == held_out_of(forty) | held_out_of(other)
    trained = [mixture[index].name for bucket in split.buckets for index in bucket]
    held = {mixture.names[number] for number in split.measured}
    assert not held & set(trained)
    assert held | set(trained) == set(mixture.names)
    of_forty = [name for name in trained if name.startswith("forty/")]
    assert len(of_forty) == 2 * (40 - len(held_out_of(forty)))


def test_the_most_images_are_the_same_ones_when_others_are_added(forty):
    dataset = LatentDataset(str(forty))
    few = hold_out(dataset, 0.3, most=4)
    assert few.measured == hold_out(dataset, 0.3).measured[:4]
    assert few.measured == hold_out(dataset, 0.5, most=4).measured
    assert few.count == len(held_out_of(forty))
    assert few.summary() == f"{few.count} of 40 images, by their content; 4 are measured"


def test_no_image_on_a_side_is_an_error(dataset_directory):
    dataset = LatentDataset(str(dataset_directory))
    with pytest.raises(ValueError, match=r"of 8 images 0\.001 holds out none") as caught:
        hold_out(dataset, 0.001)
    enough = float(str(caught.value).partition("with ")[2].partition(" ")[0])
    assert hold_out(dataset, enough).count >= 1
    with pytest.raises(ValueError, match="holds out all of 8 images; give less"):
        hold_out(dataset, 0.9999)


@pytest.mark.parametrize("dataset", ["plain", "repeats", "mixture", "workers"])
def test_no_held_out_image_is_ever_in_a_training_batch(write_config, forty, tmp_path, dataset):
    entry = {"path": str(forty)}
    section = {
        "plain": {"args": entry},
        "repeats": {"args": {**entry, "repeats": 2}},
        "mixture": {
            "module": "modules.mixture.Mixture",
            "args": {"datasets": [entry, {**entry, "repeats": 2}]},
        },
        "workers": {"args": entry, "num_workers": 1},
    }[dataset]
    path = write_config(dataset=section, networks=LORA, validation={"split": 0.3})
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    held_out: HeldOut = trainer.validation.held_out
    names = held_out.dataset.names
    held = {names[number].rpartition("/")[2] for number in held_out.measured}
    groups = trainer.step_groups()
    trained = [
        name.rpartition("/")[2]
        for _ in range(2 * trainer.steps_per_epoch)
        for part in next(groups)
        for name in part.batch.names
    ]
    assert not held & set(trained)
    assert held | set(trained) == {name.rpartition("/")[2] for name in names}
    times = {"plain": 2, "repeats": 4, "mixture": 6, "workers": 2}[dataset]
    assert len(trained) == times * (40 - len(held))


def test_every_rank_holds_out_the_same(forty):
    split = hold_out(LatentDataset(str(forty)), 0.3)
    shares = [
        BucketBatchSampler(split.buckets, batch_size=2, rank=rank, world_size=2)
        for rank in range(2)
    ]
    seen = {index for sampler in shares for batch in sampler for index in batch}
    assert seen == set(range(40)) - set(split.measured)


def test_the_plan_tells_and_faults_come_at_start(write_config, forty, capfd):
    args = {"args": {"path": str(forty)}}
    split = hold_out(LatentDataset(str(forty)), 0.3)
    batches = sum(-(-len(bucket) // 2) for bucket in split.buckets)
    path = write_config(dataset=args, networks=LORA, validation={"split": 0.3, "keep_best": True})
    assert main.main([str(path), "--check"]) == 0
    told = capfd.readouterr().out
    assert f"held out   {split.count} of 40 images, by their content" in told
    assert re.search(rf"steps      \d+ images -> {batches} batches of up to 2 an epoch", told)
    assert "run-best.safetensors" in told
    with pytest.raises(
        ConfigError, match=r"validation: split: of 40 images 0\.0001 holds out none"
    ):
        Trainer.from_config(load(path, "validation.split=0.0001"), check=True)


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({}, "validation .*says of no image that it is held out; give split: 0.1"),
        ({"split": 0.1, "args": {"path": "x"}}, "validation.args .*is given beside split"),
        ({"split": 1.0}, "validation.split .*1 leaves nothing to measure or to train"),
        ({"split": 0}, "validation.split .*0 leaves nothing"),
        ({"split": 0.1, "every_steps": 1, "every_epochs": 1}, "is given beside every_epochs"),
        ({"args": {"path": "no/where"}}, "validation.args.path .*no/where"),
        ({"split": 0.1, "patence": 3}, "did you mean 'patience'"),
    ],
)
def test_faults_of_the_section(write_config, section, fault):
    with pytest.raises(ConfigError, match=fault):
        load(write_config(networks=LORA, validation=section))
