"""Measure the tiny Stable Diffusion with the pixel classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from bench.shape_classifier import hit
from preprocess.scenes import (
    BASE_SHAPES,
    SHAPES,
    SIZES,
    draw_scene,
    sample_scene,
)
from tools.tiny_pictures import SIZE_SHARES, to_pixel_values


def score_vae(vae: AutoencoderKL, *, count: int, style: str | None = None) -> tuple[float, float]:
    """Return the mean PSNR in dB and the share of reconstructions that the classifier passes."""
    rng = np.random.default_rng(900)
    psnrs, hits = [], []
    for _ in range(count):
        scene = sample_scene(rng, shapes=SHAPES, style=style)
        original = draw_scene(scene)
        image = reconstruct(vae, original)
        error = np.asarray(image, dtype=np.float64) - np.asarray(original)
        psnrs.append(10 * np.log10(255**2 / max(np.mean(error**2), 1e-6)))
        hits.append(hit(image, scene.caption))
    return float(np.mean(psnrs)), float(np.mean(hits))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, image: Image.Image) -> Image.Image:
    """Encode a picture and decode its mean."""
    pixel_values = to_pixel_values(np.array(image)[None])
    decoded = vae.decode(vae.encode(pixel_values).latent_dist.mode()).sample[0]
    pixels = ((decoded.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(pixels.byte().numpy())


def score_base(
    pipeline: StableDiffusionPipeline, *, count: int, guidance_scale: float = 3.5, seed: int = 0
) -> dict[str, float]:
    """Return the share of generated pictures that show their caption, by picture size."""
    hits = {}
    for index, (size, share) in enumerate(zip(SIZES, SIZE_SHARES, strict=True)):
        rng = np.random.default_rng([seed, 800, index])
        captions = [
            sample_scene(rng, shapes=BASE_SHAPES).caption for _ in range(round(count * share))
        ]
        images = generate(pipeline, captions, size, guidance_scale=guidance_scale, seed=seed)
        found = [hit(i, c) for i, c in zip(images, captions, strict=True)]
        hits[f"{size[0]}x{size[1]}"] = float(np.mean(found)) if found else 0.0
    hits["all"] = sum(s * h for s, h in zip(SIZE_SHARES, list(hits.values()), strict=True))
    return hits


def generate(
    pipeline: StableDiffusionPipeline,
    captions: Sequence[str],
    size: tuple[int, int],
    *,
    guidance_scale: float,
    seed: int,
    num_inference_steps: int = 20,
) -> list[Image.Image]:
    """Generate one picture per caption, each from noise of its own seed."""
    images: list[Image.Image] = []
    for start in range(0, len(captions), 20):
        part = list(captions[start : start + 20])
        seeds = range(seed * 10_000 + start, seed * 10_000 + start + len(part))
        images += pipeline(
            part,
            width=size[0],
            height=size[1],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        ).images
    return images
