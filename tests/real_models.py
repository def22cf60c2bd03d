"""The published models in their real size, on the meta device: names and shapes, no weights."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMScheduler

from modules.models.clip_tokenizer import make_tokenizer
from modules.models.filling import make_module
from modules.models.layouts import LAYOUTS, published_config
from modules.models.stable_diffusion import StableDiffusion
from modules.models.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, Any] = {
    "sd1": StableDiffusion,
    "sd2": StableDiffusion,
    "sdxl": StableDiffusionXL,
}


def real_piece(layout: str, piece: str) -> Any:
    """A module of a published model."""
    config = published_config(LAYOUTS[layout], piece)
    return make_module(FAMILIES[layout].piece_classes[piece], config, weights=False)


def real_model(layout: str) -> Any:
    """A published model."""
    pieces = {}
    for name, cls in FAMILIES[layout].piece_classes.items():
        if name.startswith("tokenizer"):
            pieces[name] = make_tokenizer(cls, published_config(LAYOUTS[layout], name))
        else:
            pieces[name] = real_piece(layout, name)
    scheduler = DDPMScheduler.from_config(published_config(LAYOUTS[layout], "scheduler"))
    return FAMILIES[layout](**pieces, scheduler=scheduler)
