"""Names of a UNet's tensors in the original layout (CompVis, sgm), from diffusers' names."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def compvis_name(key: str, *, layers_per_block: int, has_attention: bool = True) -> str:
    """The original name of a UNet's tensor or module that diffusers calls `key`.

    `has_attention` says whether the up block of an upsampler has attention, which moves its place.

    Raises:
        ValueError: `key` is of no part of such a UNet.
    """
    found = _BLOCK.match(key)
    if found:
        side, block, kind, number = found[1], int(found[2]), found[3], int(found[4])
        place = _place(side, block, kind, number, layers_per_block, has_attention)
        rest = key[found.end() :]
    else:
        start = next((name for name in _OUTSIDE if key == name or key.startswith(name + ".")), None)
        if start is None:
            raise ValueError(f"{key}: has no name in the original layout")
        place, rest = _OUTSIDE[start], key[len(start) :]
    if "downsamplers." in key:
        rest = rest.replace(".conv", ".op", 1)
    if "resnets." in key:
        inner = rest.removeprefix(".").partition(".")
        rest = f".{_RESNET[inner[0]]}" + (f".{inner[2]}" if inner[2] else "") if inner[0] else ""
    return place + rest


def unet_module_name(path: str, config: Any) -> str:
    """The original name of a module of a UNet with `config`, for its path in diffusers."""
    found = _BLOCK.match(path)
    has_attention = found is None or "Attn" in config.up_block_types[int(found[2])]
    return compvis_name(path, layers_per_block=config.layers_per_block, has_attention=has_attention)


def original_paths(path: str, config: Any) -> list[str]:
    """The original name of a module of a UNet, if it has one: parts of later models don't."""
    try:
        return [unet_module_name(path, config)]
    except (ValueError, KeyError):
        return []


def _place(
    side: str, block: int, kind: str, number: int, layers_per_block: int, has_attention: bool
) -> str:
    each = layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * each}.0"
    if side == "down":
        return f"input_blocks.{block * each + number + 1}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{block * each + layers_per_block}.{1 + has_attention}"
    return f"output_blocks.{block * each + number}.{int(kind == 'attentions')}"
