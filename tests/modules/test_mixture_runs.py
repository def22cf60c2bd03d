"""Runs over several datasets: weights in the loss, steps, cached text, class images, the plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch

from modules.batch import collate
from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer
from preprocess.text_cache import cache_text

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
SIZES = {(32, 32): 3, (48, 32): 2}


@pytest.fixture(scope="module")
def cats(tmp_path_factory, model_directory):
    """Five cats with cached text; tests don't write to it."""
    place = tmp_path_factory.mktemp("cats") / "cats"
    directory = tiny.save_dataset(place, SIZES, captions=["a cat"])
    cache_text(directory=directory, model=str(model_directory))
    return directory


@pytest.fixture(scope="module")
def dogs(tmp_path_factory):
    """Four dogs; tests don't write to it."""
    place = tmp_path_factory.mktemp("dogs") / "dogs"
    return tiny.save_dataset(place, {(32, 32): 4}, captions=["a dog"], seed=3)


def mix(*entries, **args):
    return {"module": "modules.mixture.Mixture", "args": {"datasets": list(entries), **args}}


def assemble(path, *overrides) -> Trainer:
    return Trainer.from_config(load(path, *overrides))


def seed_by_names(trainer):
    """Let the noise and timesteps of a batch depend on its images alone."""
    loss = trainer.loss

    def seeded(batch):
        torch.manual_seed(sum(map(hash, batch.names)) % 2**31)
        return loss(batch)

    trainer._loss.compute = seeded
    return seeded


def test_the_loss_is_the_weighted_sum_over_all_images(write_config, cats, dogs):
    """Over accumulated batches of unequal size, too."""
    section = mix({"path": str(cats), "loss_weight": 0.25}, {"path": str(dogs), "loss_weight": 3})
    train = {"max_train_epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 3}
    trainer = assemble(write_config(dataset=section, networks=LORA, train=train))
    loss = seed_by_names(trainer)
    (group,) = [next(trainer.step_groups())]
    assert sorted(part.images for part in group) == [2, 3, 4]
    weights = {"cats": 0.25, "dogs": 3.0}
    expected = 0.0
    for part in group:
        names = part.batch.names
        assert part.batch.loss_weight.tolist() == [weights[n.partition("/")[0]] for n in names]
        for chosen in range(len(names)):
            ones = torch.nn.functional.one_hot(torch.tensor(chosen), len(names)).float()
            share = loss(replace(part.batch, loss_weight=ones)).item()
            expected += weights[names[chosen].partition("/")[0]] * share / 9
    assert trainer.train_step(group)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_a_run_sees_every_image_as_often_as_its_dataset_says(write_config, cats, dogs):
    section = mix({"path": str(cats), "repeats": 3}, {"path": str(dogs)})
    train = {"max_train_epochs": 3, "batch_size": 4}
    trainer = assemble(write_config(dataset=section, networks=LORA, train=train))
    seen, loss = Counter(), trainer.loss

    def spy(batch):
        seen.update(batch.names)
        return loss(batch)

    trainer._loss.compute = spy
    trainer.train()
    assert trainer.steps_per_epoch == 4 + 2  # 9 + 4 images of one size, 6 of the other
    assert trainer.step == 18
    assert seen == {
        **{f"cats/image{number:03d}": 9 for number in range(5)},
        **{f"dogs/image{number:03d}": 3 for number in range(4)},
    }


def test_class_images_beside_and_of_several_datasets(write_config, cats, dogs):
    several = mix({"path": str(cats), "repeats": 2}, {"path": str(dogs)})
    alone = {"args": {"path": str(dogs)}}
    for dataset, prior in ((several, alone), (alone, several)):
        without = assemble(write_config("a", dataset=dataset, networks=LORA))
        beside = assemble(write_config("b", dataset=dataset, prior=prior, networks=LORA))
        assert beside.steps_per_epoch == without.steps_per_epoch
        group = next(beside.step_groups())
        assert len(group) == 2
        beside.train()
        assert beside.step == 2


def test_cached_text_and_encoded_text_in_one_run(write_config, cats, dogs):
    section = mix({"path": str(cats), "text_cache": True, "repeats": 2}, {"path": str(dogs)})
    trainer = assemble(write_config(dataset=section, networks=LORA, train={"max_train_epochs": 1}))
    cached = Counter()
    for group in [next(trainer.step_groups()) for _ in range(trainer.steps_per_epoch)]:
        for part in group:
            cached[bool(part.batch.text)] += len(part.batch.names)
            owners = {name.partition("/")[0] for name in part.batch.names}
            assert owners == {"cats" if part.batch.text else "dogs"}
    assert cached[True] > 0
    trainer.train()
    networks = {"lora": {**LORA["lora"], "args": {"targets": ["unet", "text_encoders"]}}}
    message = r"^dataset: cats: text_cache: networks\.lora changes text_encoders\.0"
    with pytest.raises(ConfigError, match=message):
        assemble(write_config(dataset=section, networks=networks))


def test_the_loss_of_a_vae_is_weighted_too(write_config, cats, dogs):
    pixels = {"common": {"module": "modules.dataset.ImageDataset", "prompt": ""}}
    entries = {"path": str(cats), "loss_weight": 0.25}, {"path": str(dogs), "loss_weight": 3}
    sections = {
        "model": {"trainable": ["vae.decoder"]},
        "objective": {"module": "modules.reconstruction.Reconstruction"},
    }
    path = write_config(dataset=mix(*entries, **pixels), **sections)
    trainer = assemble(path)
    batch = collate([trainer.source.loader.dataset[index] for index in (0, 5)])
    assert batch.loss_weight.tolist() == [0.25, 3.0]

    def loss_of(**changes):
        torch.manual_seed(0)
        return trainer.loss(replace(batch, **changes)).item()

    alone = [loss_of(loss_weight=torch.eye(2)[row]) for row in range(2)]
    assert loss_of() == pytest.approx(0.25 * alone[0] + 3 * alone[1], rel=1e-5)
    assert loss_of(loss_weight=None) == pytest.approx(sum(alone), rel=1e-5)
    cached = mix(entries[0], {**entries[1], "text_cache": True}, **pixels)
    message = r"dataset\.args\.text_cache: a VAE is told no captions; take it out"
    with pytest.raises(ConfigError, match=message):
        assemble(write_config(dataset=cached, **sections))


def test_the_plan(write_config, cats, dogs, caplog):
    section = mix({"path": str(cats), "repeats": 10}, {"path": str(dogs), "loss_weight": 0.5})
    path = write_config(dataset=section, networks=LORA, train={"max_train_epochs": 2})
    with caplog.at_level("INFO"):
        assert Trainer.from_config(load(path), check=True) is None
    described = "9 images, 2 datasets: cats 5 x 10, dogs 4 x 1 (loss x 0.5) = 54 an epoch"
    assert f"data       {described}" in caplog.messages
    assert "data       images per bucket: 32x32: 7, 48x32: 2" in caplog.messages
    steps = "27 batches of up to 2 an epoch -> 27 optimizer steps an epoch, 54 in all (2.0 epochs)"
    assert f"steps      9 images x their repeats = 54 -> {steps}" in caplog.messages


def test_faults_are_told_before_anything_is_read(write_config, cats, tmp_path):
    wrong = mix({"path": str(cats)}, {"path": str(cats), "repats": 2})
    path = write_config(dataset=wrong, networks=LORA)
    message = r"dataset\.args\.datasets\.1\.repats: .* did you mean 'repeats'\?"
    with pytest.raises(ConfigError, match=message):
        assemble(path)
    absent = mix({"path": str(cats)}, {"path": str(tmp_path / "non")})
    path = write_config(dataset=absent, networks=LORA)
    with pytest.raises(ConfigError, match=r"dataset\.args\.datasets\.1\.path.* is not a directory"):
        load(path)
    sections = {"dataset": mix({"path": str(cats)}), "prior": mix({"path": str(tmp_path / "x")})}
    path = write_config(networks=LORA, **sections)
    with pytest.raises(ConfigError, match=r"prior\.args\.datasets\.0\.path.* is not a directory"):
        load(path)
