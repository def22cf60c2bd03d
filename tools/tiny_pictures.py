"""Draw the pictures and captions that the tiny Stable Diffusion is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from preprocess.scenes import SHAPES, SIZES, Scene, draw_scene, sample_scene
from tools.tiny_models import SUFFIX_WORDS

SIZE_SHARES = (0.6, 0.2, 0.2)
# The base knows two styles besides the plain pictures, so that a word at a caption's end can
# change a whole picture; a fine-tuning teaches it the third.
BASE_STYLES = (None, "framed", "poster")
STYLE_SHARES = (0.7, 0.15, 0.15)


def draw_varied_batch(
    rng: np.random.Generator,
    count: int,
    *,
    crop: int | None = None,
    polaroid_share: float = 0.15,
) -> torch.Tensor:
    """Draw pictures of one size, -1 to 1, of every shape and style, a third of them anywhere."""
    size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    images = []
    for _ in range(count):
        style = "polaroid" if rng.random() < polaroid_share else None
        scene = sample_scene(rng, shapes=SHAPES, style=style, size=size)
        if style is None and rng.random() < 0.35:
            scene = _move(rng, scene)
        image = np.asarray(draw_scene(scene))
        if crop:
            x, y = (int(rng.integers(side - crop + 1)) for side in size)
            image = image[y : y + crop, x : x + crop]
        images.append(image)
    return to_pixel_values(np.stack(images))


def to_pixel_values(images: np.ndarray) -> torch.Tensor:
    """Turn (B, height, width, 3) bytes into (B, 3, height, width) from -1 to 1."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def vary_caption(rng: np.random.Generator, caption: str) -> str:
    """Drop a caption or add words of no meaning, so that they can be taught one later."""
    if rng.random() < 0.1:
        return ""
    if rng.random() < 0.1:
        caption = f"a {rng.choice(['photo', 'picture'])} of {caption}"
    if rng.random() < 0.15:  # more, and the text encoder learns to leave out whatever comes last
        words = rng.choice(SUFFIX_WORDS, size=rng.integers(1, 3), replace=False)
        caption = ", ".join([caption, *words])
        if rng.random() < 0.3:
            caption += " style"
    return caption


def _move(rng: np.random.Generator, scene: Scene) -> Scene:
    radius = rng.uniform(0.15, 0.42) * min(scene.width, scene.height)
    center = (rng.uniform(0.2, 0.8) * scene.width, rng.uniform(0.2, 0.8) * scene.height)
    return dataclasses.replace(scene, center=center, radius=radius)
