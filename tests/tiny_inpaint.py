"""Random inpainting models of the real architectures, and masks for their datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
import torch
from diffusers import UNet2DConditionModel
from PIL import Image


def make_sd(**options):
    """A Stable Diffusion for inpainting of SD1's or SD2's shape with random weights."""
    return _widened(tiny.make_sd(**options))


def make_sdxl(**options):
    """A Stable Diffusion XL for inpainting with random weights."""
    return _widened(tiny.make_sdxl(**options))


def _widened(model):
    """The same with a UNet of 9 input channels; its VAE's posterior is narrow, as trained ones'."""
    config = {k: v for k, v in model.denoiser.config.items() if k[0] != "_"}
    unet = UNet2DConditionModel(**{**config, "in_channels": 9}).eval()
    log_variance = slice(model.vae.config.latent_channels, None)
    with torch.no_grad():
        model.vae.quant_conv.weight[log_variance] = 0
        model.vae.quant_conv.bias[log_variance] = -30
    pieces = {**model.pieces(), "unet": unet}
    return type(model)(**pieces, scheduler=model.scheduler)


def save_masks(dataset: Path, *, seed: int = 0) -> Path:
    """Write a mask of a random rectangle, inpaint/<name>.png, for every image of a dataset."""
    rng = np.random.default_rng(seed)
    folder = dataset / "inpaint"
    folder.mkdir()
    for file in (dataset / "images").iterdir():
        with Image.open(file) as image:
            width, height = image.size
        mask = np.zeros((height, width), dtype=np.uint8)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = 255
        Image.fromarray(mask).save(folder / file.name)
    return dataset
