"""Folders of the published models' configs without weights, and datasets of one size for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modules.models.published import published_model


def save_configs(name: str, directory: Path) -> Path:
    """Write `sd1` or `sdxl` as a diffusers directory in which only the weights are missing."""
    model = published_model(name)
    index = {"_class_name": model.pipeline, "scheduler": ["diffusers", "DDPMScheduler"]}
    for piece_name, piece in model.pieces().items():
        library = "diffusers" if hasattr(piece, "save_config") else "transformers"
        index[piece_name] = [library, type(piece).__name__]
        place = directory / piece_name
        if "tokenizer" in piece_name:
            piece.save_pretrained(place)
        elif library == "diffusers":
            piece.save_config(place)
        else:
            piece.config.save_pretrained(place)
    model.scheduler.save_config(directory / "scheduler")
    (directory / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def save_latents(directory: Path, *, size: int) -> Path:
    """Write a dataset of two images of `size` x `size` pixels as latents."""
    (directory / "captions").mkdir(parents=True)
    (directory / "latents").mkdir()
    for name in ("a", "b"):
        zeros = np.zeros((4, size // 8, size // 8), dtype=np.float32)
        np.save(directory / "latents" / f"{name}.npy", zeros)
        (directory / "captions" / f"{name}.caption").write_text("a photo", encoding="utf-8")
    index = {f"({size}, {size})": ["a", "b"]}
    (directory / "buckets.json").write_text(json.dumps(index), encoding="utf-8")
    return directory
