"""Pictures with settings of their own, drawn as few batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modules.drawing import draw_images
from modules.guides import stack
from modules.picture_settings import PictureSettings
from modules.protocols import Run
from modules.rounding import rounded


def draw_pictures(
    run: Run,
    pictures: Sequence[PictureSettings],
    guides: Sequence[Mapping[str, Tensor]],
    *,
    batch_size: int,
    tome: bool,
    dtype: torch.dtype | None = None,
) -> list[Image.Image]:
    """Draw each picture with its own settings and guides, by the model as it is now.

    Those that can be drawn together are, up to `batch_size`; a picture doesn't depend on that.
    `dtype` rounds what is trained for this, as a file in it would.
    """
    drawn: dict[int, Image.Image] = {}
    networks = list(run.networks.values())
    modules: list[Any] = networks
    trained = [*run.trained_base.values(), *(p for n in modules for p in n.parameters())]
    trained = [parameter for parameter in trained if parameter.requires_grad]
    for numbers in _batches(pictures, batch_size):
        batch = [pictures[number] for number in numbers]
        first = batch[0]
        weights, strength = run.sampled_weights(), at_strength(networks, first.multiplier)
        with weights, rounded(trained, dtype), strength:
            images = draw_images(
                run.model,
                networks,
                prompts=[picture.prompt for picture in batch],
                negative_prompt=[picture.negative_prompt for picture in batch],
                extras=stack([guides[number] for number in numbers]),
                seeds=[picture.seed for picture in batch],
                size=first.size,
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                sampler=first.sampler,
                tome=tome,
                autocast=run.autocast,
            )
        drawn |= zip(numbers, images, strict=True)
    return [drawn[number] for number in range(len(pictures))]


@contextlib.contextmanager
def at_strength(networks: Sequence[Any], multiplier: float) -> Iterator[None]:
    """All networks at so many times their own strength, and back."""
    own = [(network, network.multiplier) for network in networks if has_strength(network)]
    try:
        for network, strength in own:
            network.multiplier = strength * multiplier
        yield
    finally:
        for network, strength in own:
            network.multiplier = strength


def has_strength(network: Any) -> bool:
    """Whether a network can be applied more or less strongly."""
    return hasattr(network, "multiplier")


def _batches(pictures: Sequence[PictureSettings], size: int) -> Iterator[list[int]]:
    """Numbers of pictures with equal settings, in the order in which they come first."""
    groups: dict[object, list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.shared, []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]
