"""Cached moments in a run: other latents in each step, the same in the same step, none by chance
where a run is looked at."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from modules.batch import Sample, collate
from modules.cache_notes import CacheNotes
from modules.config import load
from modules.dataset import LatentDataset
from modules.errors import ConfigError
from modules.moments import at_mean, draw, mean_of
from modules.store import LocalStore
from modules.trainer import Trainer
from preprocess.pack import pack

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


def save_moments(directory, *, log_variance, names=None):
    """Let the dataset's latents be the means of moments."""
    for file in sorted((directory / "latents").glob("*.npy")):
        if names is None or file.stem in names:
            mean = np.load(file)
            np.save(file, np.concatenate([mean, np.full_like(mean, log_variance)]))
    return directory


@pytest.fixture
def copies(dataset_directory, tmp_path):
    def copy(name):
        return shutil.copytree(dataset_directory, tmp_path / name)

    return copy


def seen_by(path, *overrides, steps=4):
    """What each step made of its latents, and the weights after them."""
    trainer = Trainer.from_config(load(path, *overrides))
    seen, encode = [], trainer.model.encode_images

    def note(batch):
        clean = encode(batch)
        seen.append(clean.clone())
        return clean

    trainer.model.encode_images = note
    groups = trainer.step_groups()
    for _ in range(steps):
        trainer.train_step(next(groups))
        trainer.step += 1
    return seen, [p.detach().clone() for group in trainer.groups for p in group.parameters]


def test_a_draw_is_mean_and_deviation():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    moments = torch.cat([mean, log_variance], dim=1)
    torch.manual_seed(1)
    noise = torch.randn(2, 4, 6, 6)
    torch.manual_seed(1)
    assert torch.allclose(draw(moments, 4), mean + log_variance.exp().sqrt() * noise)
    assert torch.equal(mean_of(moments, 4), mean)
    assert torch.equal(mean_of(moments[0], 4), mean[0])


def test_latents_are_no_moments_and_draw_no_number():
    latents = torch.randn(2, 4, 6, 6)
    before = torch.get_rng_state()
    assert draw(latents, 4) is latents
    assert mean_of(latents, 4) is latents
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_draws_others_and_each_run_the_same(write_config, copies):
    data = save_moments(copies("data"), log_variance=-1.0)
    path = write_config(
        networks=LORA, dataset={"args": {"path": str(data)}}, train={"batch_size": 8}
    )
    first, weights = seen_by(path)
    again, same = seen_by(path)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights, same, strict=True))
    alike = [clean for clean in first if clean.shape == first[0].shape]
    assert len(alike) > 1
    sums = [clean.sum(dim=0) for clean in alike]  # of the same images in whatever order
    assert not torch.allclose(sums[0], sums[1], atol=0.1)


def test_without_variance_they_are_the_latents(write_config, copies, dataset_directory):
    data = save_moments(copies("data"), log_variance=-np.inf)
    plain, _ = seen_by(write_config("plain", networks=LORA))
    path = write_config("moments", networks=LORA, dataset={"args": {"path": str(data)}})
    drawn, _ = seen_by(path)
    assert all(torch.equal(one, other) for one, other in zip(plain, drawn, strict=True))


def test_resumed_it_draws_what_the_whole_run_drew(write_config, copies):
    data = save_moments(copies("data"), log_variance=-1.0)
    path = write_config(networks=LORA, dataset={"args": {"path": str(data)}}, save={"state": True})

    def trained(*overrides):
        trainer = Trainer.from_config(load(path, *overrides))
        trainer.train()
        return [p.detach().clone() for group in trainer.groups for p in group.parameters]

    whole = trained("save.name=whole", "train.max_train_steps=4")
    half = trained("save.name=half")
    accepted = "train.accept_changes=[train.max_train_steps]"
    again = trained("save.name=half", "train.max_train_steps=4", "train.resume=auto", accepted)
    assert not all(torch.equal(one, other) for one, other in zip(half, whole, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(again, whole, strict=True))


def test_packed_they_are_the_same(write_config, copies):
    data = save_moments(copies("data"), log_variance=-1.0)
    path = write_config(networks=LORA, dataset={"args": {"path": str(data)}})
    single, _ = seen_by(path)
    pack(directory=data, remove=True)
    assert not list((data / "latents").glob("*.npy"))
    packed, _ = seen_by(path)
    assert all(torch.equal(one, other) for one, other in zip(single, packed, strict=True))


def test_latents_may_stand_beside_moments(write_config, copies):
    names = {"image000", "image003"}
    data = save_moments(copies("data"), log_variance=-1.0, names=names)
    path = write_config(
        networks=LORA, dataset={"args": {"path": str(data)}}, train={"batch_size": 5}
    )
    seen, _ = seen_by(path)
    assert {clean.shape[1] for clean in seen} == {4}


def test_beside_moments_latents_have_no_variance():
    latents, moments = torch.randn(4, 6, 6), torch.randn(8, 6, 6)
    samples = [
        Sample(name="a", caption="", latents=latents),
        Sample(name="b", caption="", latents=moments),
    ]
    batch = collate(samples)
    drawn = draw(batch.latents, 4)
    assert torch.equal(drawn[0], latents)
    assert not torch.equal(drawn[1], moments[:4])
    assert torch.equal(at_mean(batch, 4).latents, torch.stack([latents, moments[:4]]))


def test_other_channels_are_refused(write_config, copies):
    data = copies("data")
    for file in (data / "latents").glob("*.npy"):
        np.save(file, np.concatenate([np.load(file)] * 3))
    path = write_config(networks=LORA, dataset={"args": {"path": str(data)}})
    with pytest.raises(
        ConfigError,
        match=r"has 12 channels, the model's latents have 4 .* it is not .* with the run's model",
    ):
        Trainer.from_config(load(path))


def test_validation_measures_the_mean(write_config, copies):
    data = save_moments(copies("data"), log_variance=0.0)
    path = write_config(
        networks=LORA,
        dataset={"args": {"path": str(data)}},
        validation={"split": 0.3, "every_steps": 1},
    )
    trainer = Trainer.from_config(load(path))
    encoded, encode = [], trainer.model.encode

    def note(batch):
        encoded.append(encode(batch))
        return encoded[-1]

    trainer.model.encode = note
    trainer.validation.measure_if_due(trainer)
    assert encoded
    for batch in encoded:
        for latents, name in zip(batch.latents, batch.names, strict=True):
            mean = torch.from_numpy(np.load(data / "latents" / f"{name}.npy"))[:4]
            assert torch.equal(latents, mean)


def test_workers_map_packed_files_for_themselves(copies):
    import pickle

    data = save_moments(copies("data"), log_variance=-1.0)
    pack(directory=data, remove=True)
    dataset = LatentDataset(str(data), prompt="a")
    first = dataset[0].latents
    sent = pickle.dumps(dataset)
    assert len(sent) < 20_000  # the files' content is not in it
    assert torch.equal(pickle.loads(sent)[0].latents, first)


def test_a_sample_that_is_noted_is_as_one_that_was_not(tmp_path):
    digest = "00" * 32
    entry = {"name": "a", "vae": "v", "dtype": "fp32", "bytes": 1, "mtime_ns": 1}
    entry["image_sha256"] = digest
    notes = []
    for folder, posterior in (
        ("plain", {}),
        ("noted", {"posterior": "sample"}),
        ("m", {"posterior": "moments"}),
    ):
        (tmp_path / folder).mkdir()
        line = json.dumps({**entry, **posterior}) + "\n"
        (tmp_path / folder / "index.jsonl").write_text(line, encoding="utf-8")
        notes.append(CacheNotes(LocalStore(tmp_path), folder, ["a"]))
    assert not notes[0].differs(notes[1]).any()
    assert notes[0].differs(notes[2]).all()
