"""Token merging (Bolya & Hoffman 2023, arXiv:2303.17604): fewer tokens in the UNet's attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def merge_tokens(unet: Any, ratio: float) -> None:
    """Merge this part of the tokens in the self-attention of the UNet's largest level.

    The UNet has to be on its device already. Where merged tokens lie is drawn from the device's
    own random generator: gradient checkpointing winds that back for its second forward, and the
    package's private one it would not, which gives wrong gradients.

    Raises:
        ValueError: the UNet has no attention that tokens could be merged in.
    """
    import tomesd
    from diffusers.models.attention import BasicTransformerBlock

    levels = [number for number, kind in enumerate(unet.config.down_block_types) if "Attn" in kind]
    if not levels or not any(isinstance(m, BasicTransformerBlock) for m in unet.modules()):
        raise ValueError("train.tome_ratio: this UNet has no attention in which to merge tokens")
    tomesd.apply_patch(unet, ratio=ratio, max_downsample=2 ** levels[0])
    _settings(unet)["generator"] = _generator(next(unet.parameters()).device)


@contextlib.contextmanager
def whole_tokens(unet: Any) -> Iterator[None]:
    """Merge nothing for a while, in a UNet that merges or in one that doesn't."""
    if not hasattr(unet, "_tome_info"):
        yield
        return
    settings = _settings(unet)
    ratio, settings["ratio"] = settings["ratio"], 0.0
    try:
        yield
    finally:
        settings["ratio"] = ratio


def _settings(unet: Any) -> dict[str, Any]:
    return unet._tome_info["args"]


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
