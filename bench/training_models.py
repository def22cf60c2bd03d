"""Base models with random weights to measure training on: real architectures, and smaller ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = Path(__file__).resolve().parent.parent / "assets" / "tiny-sd"
REDUCED: dict[str, Any] = {
    "block_out_channels": (64, 128, 256, 256),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "norm_num_groups": 16,
    "sample_size": 32,
}
"""SD1's UNet, 192 layers with adapters as there, in a size that a processor can train."""


_WIDTH = 160  # of a token, 768 in SD1
REDUCED_PIECES: dict[str, Any] = {
    "unet": {**REDUCED, "cross_attention_dim": _WIDTH},
    "vae": {"block_out_channels": (24, 48, 96, 96), "norm_num_groups": 8},
    "text_encoder": {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_attention_heads": 4,
        "projection_dim": _WIDTH,
    },
}
"""SD1's UNet, VAE and text encoder with a fifth of their channels, as deep as there."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A base model to be made: a published one, with other values in the configs of its pieces."""

    published: str
    latent_size: int
    """Side of the latents that it is trained on."""
    pixels: int = 8
    """Of a latent position's side."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By piece."""
    is_small: bool = False
    """Whether all pieces that don't change are those of the quickstart's model."""


ARCHITECTURES = {
    "tiny": Architecture(published="sd1", latent_size=16, pixels=4, is_small=True),
    "reduced": Architecture(
        published="sd1", latent_size=32, pixels=4, changes={"unet": REDUCED}, is_small=True
    ),
    "whole": Architecture(published="sd1", latent_size=32, changes=REDUCED_PIECES),
    "sd1": Architecture(published="sd1", latent_size=64),
    "sdxl": Architecture(published="sdxl", latent_size=128),
}


def write_model(directory: Path, architecture: Architecture) -> None:
    """Write a model of an architecture with random weights, as a diffusers directory.

    It is made on the accelerator, where there is one: SDXL takes minutes on a processor.
    """
    import torch

    torch.manual_seed(0)
    if architecture.is_small:
        shutil.copytree(TINY, directory)
        if "unet" not in architecture.changes:
            return
        from diffusers import UNet2DConditionModel

        shutil.rmtree(directory / "unet")
        unet = UNet2DConditionModel(**architecture.changes["unet"])
        unet.save_pretrained(directory / "unet")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = make_model(architecture)
    model.save_pretrained(directory, dtype=torch.float16)


def make_vae() -> Any:
    """Stable Diffusion 1's VAE with random weights."""
    from diffusers import AutoencoderKL

    from modules.models.layouts import LAYOUTS, published_config

    config = published_config(LAYOUTS["sd1"], "vae")
    return AutoencoderKL.from_config(config).eval()


def make_model(architecture: Architecture) -> Any:
    """The model of an architecture with random weights, on the default device."""
    from diffusers import DDPMScheduler

    from modules.component import resolve
    from modules.models import FAMILIES
    from modules.models.clip_tokenizer import make_tokenizer
    from modules.models.layouts import LAYOUTS, published_config

    layout = LAYOUTS[architecture.published]
    family = resolve(FAMILIES[layout.pipeline])
    pieces: dict[str, Any] = {}
    for name, kind in family.piece_classes.items():
        config = {**published_config(layout, name), **architecture.changes.get(name, {})}
        if name.startswith("tokenizer"):
            pieces[name] = make_tokenizer(kind, config)
        elif hasattr(kind, "from_config"):
            pieces[name] = kind.from_config(config).eval()
        else:
            pieces[name] = kind(kind.config_class(**config)).eval()
    scheduler = DDPMScheduler.from_config(published_config(layout, "scheduler"))
    return family(**pieces, scheduler=scheduler)
