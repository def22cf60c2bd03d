"""Names of all pieces' tensors in the original layout (CompVis, sgm, OpenCLIP), both ways.

One table, from diffusers' names to the places in a file, serves reading and writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modules.models.compvis import unet_module_name
from modules.models.layouts import Layout
from modules.models.portable import classic_name

_STACK = ("query", "key", "value")


@dataclass(frozen=True)
class Place:
    """Where a file keeps a tensor: the name, and in what form.

    `query`, `key` and `value` are the thirds of one tensor, `convolution` is a Linear written as a
    1x1 convolution.
    """

    name: str
    form: Literal["same", "convolution", "transposed", "query", "key", "value"] = "same"

    def shape(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of what has shape `own` in the module."""
        if self.form == "convolution":
            return (*own, 1, 1)
        if self.form == "transposed":
            return own[::-1]
        return (3 * own[0], *own[1:]) if self.form in _STACK else own

    def unpack(self, stored: Tensor) -> Tensor:
        """The module's tensor out of the file's."""
        if self.form == "convolution":
            return stored.reshape(stored.shape[:2])
        if self.form == "transposed":
            return stored.T
        return stored.chunk(3)[_STACK.index(self.form)] if self.form in _STACK else stored


def places(piece: str, module: Any, layout: Layout) -> dict[str, Place]:
    """The place of each tensor of a piece's module in a file of this kind."""
    keys, prefix = module.state_dict(), layout.prefixes[piece]
    if piece == "unet":
        return {key: Place(prefix + unet_module_name(key, module.config)) for key in keys}
    if piece == "vae":
        found = vae_places(module, keys)
    elif piece in layout.open_clip:
        found = {key: _open_clip_place(classic_name(module, key)) for key in keys}
    else:
        found = {key: Place(classic_name(module, key)) for key in keys}
    return {key: Place(prefix + place.name, place.form) for key, place in found.items()}


def pack(tensors: Mapping[str, Tensor], where: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors of a file out of a module's, which `where` has places for."""
    packed: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place = where[key]
        if place.form in _STACK:
            stacks.setdefault(place.name, {})[place.form] = tensor
        elif place.form == "convolution":
            packed[place.name] = tensor[:, :, None, None].contiguous()
        else:
            own = tensor.T if place.form == "transposed" else tensor
            packed[place.name] = own.contiguous()
    for name, parts in stacks.items():
        packed[name] = torch.cat([parts[form] for form in _STACK])
    return packed


def vae_places(vae: Any, keys: Iterable[str]) -> dict[str, Place]:
    """The place of each tensor of an AutoencoderKL, without a prefix."""
    last = len(vae.config.block_out_channels) - 1
    return {key: _vae_place(key, last) for key in keys}


def _vae_place(key: str, last: int) -> Place:
    up = re.match(r"decoder\.up_blocks\.(\d+)", key)
    if up:  # counted from the other end
        key = f"decoder.up.{last - int(up[1])}{key[up.end() :]}"
    name = _replaced(key, _VAE)
    linear = ".mid.attn_1." in name and ".norm." not in name and name.endswith(".weight")
    return Place(name, "convolution" if linear else "same")


def _open_clip_place(key: str) -> Place:
    if key == "text_projection.weight":
        return Place("text_projection", "transposed")
    stacked = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", key)
    if stacked:
        block = _replaced(f"{stacked[1]}.", _OPEN_CLIP)
        form = {part[0]: part for part in _STACK}[stacked[2]]
        return Place(f"{block}attn.in_proj_{stacked[3]}", form)  # type: ignore[arg-type]
    return Place(_replaced(key, _OPEN_CLIP))


def _replaced(key: str, table: Mapping[str, str]) -> str:
    for pattern, new in table.items():
        key = re.sub(pattern, new, key)
    return key


_VAE = {
    r"^encoder\.down_blocks\.": "encoder.down.",
    r"\.resnets\.": ".block.",
    r"\.downsamplers\.0\.": ".downsample.",
    r"\.upsamplers\.0\.": ".upsample.",
    r"\.mid_block\.block\.0\.": ".mid.block_1.",
    r"\.mid_block\.block\.1\.": ".mid.block_2.",
    r"\.mid_block\.attentions\.0\.": ".mid.attn_1.",
    r"\.attn_1\.group_norm\.": ".attn_1.norm.",
    r"\.attn_1\.to_([qkv])\.": r".attn_1.\1.",
    r"\.attn_1\.to_out\.0\.": ".attn_1.proj_out.",
    r"\.conv_shortcut\.": ".nin_shortcut.",
    r"\.conv_norm_out\.": ".norm_out.",
}
_OPEN_CLIP = {
    r"^text_model\.": "",
    r"^embeddings\.token_embedding\.": "token_embedding.",
    r"^embeddings\.position_embedding\.weight$": "positional_embedding",
    r"^encoder\.layers\.": "transformer.resblocks.",
    r"\.self_attn\.": ".attn.",
    r"\.layer_norm([12])\.": r".ln_\1.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
    r"^final_layer_norm\.": "ln_final.",
}
