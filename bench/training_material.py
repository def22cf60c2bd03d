"""What training is measured on: a model with random weights, cached latents and cached text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.training_models import ARCHITECTURES, Architecture, write_model
from modules.buckets import BucketIndex

FUSED = "full.fused_backward"


def write_material(
    folder: Path, architecture: Architecture = ARCHITECTURES["reduced"], *, images: int = 32
) -> tuple[Path, Path]:
    """Write a model and a dataset of one bucket; returns their directories."""
    from preprocess.text_cache import cache_text

    model, data = folder / "model", folder / "data"
    write_model(model, architecture)
    names = [f"image{number:03d}" for number in range(images)]
    for part in ("latents", "captions"):
        (data / part).mkdir(parents=True)
    random, side = np.random.default_rng(0), architecture.latent_size
    for number, name in enumerate(names):
        latents = random.standard_normal((4, side, side), dtype=np.float32)
        np.save(data / "latents" / f"{name}.npy", latents)
        caption = f"a {('red', 'blue')[number % 2]} circle on a green background"
        (data / "captions" / f"{name}.txt").write_text(caption, encoding="utf-8")
    pixels = side * architecture.pixels
    BucketIndex({(pixels, pixels): names}).save(data / "buckets.json")
    cache_text(directory=data, model=str(model))
    return model, data


def make_config(
    model: Path,
    data: Path,
    *,
    kind: str,
    precision: str,
    batch_size: int,
    args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The YAML of a run: an adapter of rank 16, with other arguments if they are given, or "full".

    "full.fused_backward" makes its steps within the backward pass, without clipping. Without a
    rehearsal, since no peer has one.
    """
    config: dict[str, Any] = {
        "model": {"path": str(model)},
        "dataset": {"args": {"path": str(data), "text_cache": True}},
        "train": {
            "batch_size": batch_size,
            "max_train_steps": 100_000,
            "learning_rate": 1e-4,
            "mixed_precision": precision,
            "log_every": 100,
            "rehearse": False,
        },
        "save": {"directory": str(data.parent / "output"), "name": "run"},
    }
    if kind.startswith("full"):
        config["model"]["trainable"] = ["unet"]
        if kind == FUSED:
            config["train"]["max_grad_norm"] = 0.0
            config["optimizer"] = {"fused_backward": True}
    else:
        network = {"module": f"networks.{kind}", "args": {"rank": 16, **(args or {})}}
        config["networks"] = {"adapter": network}
    return config
