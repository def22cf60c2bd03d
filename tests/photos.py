"""Photographs on disk, and a dataset made of them by the scripts, for tests of the whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from preprocess.bucketing import bucketing
from preprocess.latent import latent

SIZES = ((96, 72), (72, 96), (80, 80))
BUCKETS = {"resolution": 64, "min_length": 32, "max_length": 96, "step": 32, "num_workers": 1}


def take(directory: Path, count: int = 4, *, seed: int = 0) -> Path:
    """Write photographs photo0.png, photo1.png, ... with a caption beside each."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw(directory / f"photo{number}.png", seed=seed + number)
        (directory / f"photo{number}.txt").write_text("a red cat", encoding="utf-8")
    return directory


def draw(path: Path, *, seed: int, size: tuple[int, int] | None = None) -> None:
    """Write a picture of coloured squares."""
    width, height = size or SIZES[seed % len(SIZES)]
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(path)


def sort(source: Path, data: Path, **options: int) -> Path:
    """Sort photographs into buckets."""
    bucketing(directory=source, output=data, **{**BUCKETS, **options})
    return data


def prepare(source: Path, data: Path, model: Path | str, **options) -> Path:
    """Sort photographs into buckets and encode them with a model's VAE."""
    sort(source, data)
    latent(directory=data, model=str(model), num_workers=1, **options)
    return data


def write_yaml(path: Path, *, data: Path, model: Path, **sections) -> str:
    """Write a config that trains a LoRA for two steps; sections extend or replace its own."""
    config = {
        "model": {"path": str(model)},
        "dataset": {"args": {"path": str(data)}},
        "networks": {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}},
        "train": {"max_train_steps": 2, "batch_size": 2, "learning_rate": 1e-3},
        "save": {"directory": str(path.parent / "output")},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)
