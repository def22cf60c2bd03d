"""Every family with every kind of network: trained, drawn with, saved and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from families import FAMILIES, NETWORKS
from PIL import Image

from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer

SIDES = {"control": "image", "pfg": "npz"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """Four pictures with guides, masks and features."""
    directory = tmp_path_factory.mktemp("families") / "data"
    captions = ("a red <thing>", "a blue dog", "a photo of the mat", "blue")
    return tiny.save_dataset(directory, {(32, 32): 4}, side_inputs=True, captions=captions)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family and a random model of it on disk."""
    chosen = FAMILIES[request.param]
    directory = tmp_path_factory.mktemp(request.param) / "model"
    return chosen, tiny.save_sd(directory, make=chosen.make)


def write(write_config, family, data: Path, **sections) -> Path:
    chosen, directory = family
    dataset = {"module": chosen.dataset, "args": {"path": str(data), "extras": SIDES}}
    model = {"path": str(directory), **sections.pop("model", {})}
    return write_config(model=model, dataset=dataset, **sections)


def assemble(path: Path) -> Trainer:
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    return trainer


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_two_steps(family, everything, write_config, name):
    sections = {
        "networks": {name: NETWORKS[name]},
        "sample": {"num_images": 2, "num_inference_steps": 2},
    }
    path = write(write_config, family, everything, **sections)
    if name in family[0].refuses:
        with pytest.raises(ConfigError, match=family[0].refuses[name]):
            assemble(path)
        return
    trainer = assemble(path)
    before = [p.detach().clone() for group in trainer.groups for p in group.parameters]
    base = {key: p.clone() for key, p in trainer.model.denoiser.state_dict().items()}
    trainer.train()
    after = [p for group in trainer.groups for p in group.parameters]
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved > 0.4 * len(after)  # the first factors of adapters wait for the second ones
    assert all(torch.isfinite(p).all() for p in after)
    assert all(torch.equal(base[k], p) for k, p in trainer.model.denoiser.state_dict().items())
    with Image.open(trainer.directory / "before_after.png") as sheet:
        assert sheet.size > (64, 64)
    written = next(p for p in trainer.directory.iterdir() if p.name.startswith("run"))
    section = {**NETWORKS[name], "resume": str(written)}
    again = assemble(write(write_config, family, everything, networks={name: section}))
    batch = next(iter(trainer.source.loader))
    losses = []
    for one in (trainer, again):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(one.loss(batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [name for name, one in FAMILIES.items() if one.learns_noise], indirect=True
)
def test_four_pictures_are_overfitted(family, everything, write_config):
    """The loss on them falls below a tenth of what it was."""
    path = write(
        write_config,
        family,
        everything,
        model={"trainable": ["unet", "text_encoders"]},
        train={
            "max_train_steps": 300,
            "batch_size": 16,
            "minibatch_repeat": 4,
            "learning_rate": 5e-3,
        },
        lr_scheduler={"name": "cosine", "warmup_steps": 30},
    )
    trainer = assemble(path)
    before = mean_loss(trainer)
    trainer.train()
    assert mean_loss(trainer) < before / 10


@torch.no_grad()
def mean_loss(trainer: Trainer) -> float:
    """Of the four pictures, at always the same noise and timesteps."""
    batch = next(iter(trainer.source.loader)).repeat(8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return trainer.loss(batch).item() / len(batch.captions)


def test_gradients_of_all_that_is_trained(family, everything, write_config):
    """Also of every part of the text encoders: what has no effect is not among it."""
    model = {"trainable": ["unet", "text_encoders"]}
    trainer = assemble(write(write_config, family, everything, model=model))
    part = next(trainer.step_groups())[0]
    trainer.accelerator.backward(trainer._loss(part.batch))
    trained = trainer.trained_base
    without = [path for path, p in trained.items() if p.grad is None]
    assert not without
    assert sum(bool(p.grad.any()) for p in trained.values()) > 0.9 * len(trained)
