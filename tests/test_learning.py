"""Each way of training lowers the loss on pictures that it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.config import load
from modules.dataset import LatentDataset
from modules.trainer import Trainer
from preprocess.bucketing import bucketing
from preprocess.draw_shapes import draw_dataset
from preprocess.latent import latent

TINY_SD = Path(__file__).parent.parent / "assets" / "tiny-sd"
LORA = {"module": "networks.lora.LoRA", "learning_rate": 2e-3}
WAYS = {
    "full": {"model": {"path": str(TINY_SD), "trainable": ["unet", "text_encoders"]}},
    "lora": {"networks": {"lora": {**LORA, "args": {"rank": 8}}}},
    "locon": {"networks": {"lora": {**LORA, "args": {"rank": 8, "conv_rank": 8}}}},
}
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def prepare(directory: Path, *, count: int, seed: int) -> Path:
    pictures, dataset = directory / "pictures", directory / "dataset"
    draw_dataset(output=str(pictures), count=count, seed=seed, style="polaroid")
    bucketing(
        directory=pictures, output=dataset, resolution=64, min_length=48, max_length=80, step=16
    )
    latent(directory=dataset, model=str(TINY_SD), batch_size=16)
    return dataset


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("trained_on"), count=24, seed=0)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    return LatentDataset(prepare(tmp_path_factory.mktemp("held_out"), count=12, seed=77))


@torch.no_grad()
def held_out_loss(trainer: Trainer, dataset: LatentDataset) -> float:
    """Mean loss over all images; noise and timesteps are the same at each call."""
    total = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(123)
        for bucket in dataset.buckets:
            loader = DataLoader(dataset, batch_sampler=[bucket] * 4, collate_fn=collate)
            total += sum(trainer.loss(batch).item() for batch in loader) / 4
    return total / len(dataset)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_loss_on_held_out_pictures_falls(way, seed, trained_on, held_out, tmp_path):
    config = {
        "model": {"path": str(TINY_SD)},
        "dataset": {"args": {"path": str(trained_on)}},
        "train": {
            "max_train_steps": 30,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "seed": seed,
        },
        "save": {"directory": str(tmp_path / "output")},
        **WAYS[way],
    }
    path = tmp_path / "learning.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    before = held_out_loss(trainer, held_out)
    trainer.train()
    after = held_out_loss(trainer, held_out)
    assert after < 0.9 * before, (before, after)
