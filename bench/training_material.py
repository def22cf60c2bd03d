"""What training is measured on: a model with random weights, cached latents and cached text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from modules.buckets import BucketIndex

TINY = Path("assets/tiny-sd")
REDUCED: dict[str, Any] = {
    "block_out_channels": (64, 128, 256, 256),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "norm_num_groups": 16,
    "sample_size": 32,
}
"""SD1's UNet, 192 layers with adapters as there, in a size that a processor can train."""


def write_material(folder: Path, *, latent_size: int = 32, images: int = 32) -> tuple[Path, Path]:
    """Write a model and a dataset of one bucket; returns their directories.

    `latent_size` is the side of the latents. Text encoder, tokenizer and VAE are those of the
    quickstart's model.
    """
    import torch
    from diffusers import UNet2DConditionModel

    from preprocess.text_cache import cache_text

    model, data = folder / "model", folder / "data"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("unet"))
    torch.manual_seed(0)
    UNet2DConditionModel(**REDUCED).save_pretrained(model / "unet")
    names = [f"image{number:03d}" for number in range(images)]
    for part in ("latents", "captions"):
        (data / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, name in enumerate(names):
        latents = random.standard_normal((4, latent_size, latent_size), dtype=np.float32)
        np.save(data / "latents" / f"{name}.npy", latents)
        caption = f"a {('red', 'blue')[number % 2]} circle on a green background"
        (data / "captions" / f"{name}.txt").write_text(caption, encoding="utf-8")
    side = 4 * latent_size  # of pixels: its VAE halves twice
    BucketIndex({(side, side): names}).save(data / "buckets.json")
    cache_text(directory=data, model=str(model))
    return model, data


def make_config(model: Path, data: Path, *, kind: str, precision: str, batch_size: int) -> dict:
    """The YAML of a run: a LoRA of rank 16, or the whole UNet."""
    config: dict[str, Any] = {
        "model": {"path": str(model)},
        "dataset": {"args": {"path": str(data), "text_cache": True}},
        "train": {
            "batch_size": batch_size,
            "max_train_steps": 100_000,
            "learning_rate": 1e-4,
            "mixed_precision": precision,
            "log_every": 100,
        },
        "save": {"directory": str(data.parent / "output"), "name": "run"},
    }
    if kind == "full":
        config["model"]["trainable"] = ["unet"]
    else:
        network = {"module": f"networks.{kind}", "args": {"rank": 16}}
        config["networks"] = {"adapter": network}
    return config
