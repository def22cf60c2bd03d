"""Which keys of an adapter file other programs take, after their published rules.

Written from how each program finds a layer for a key, not from how we name layers: ComfyUI and
AUTOMATIC1111 know the original's modules, sd-scripts and LyCORIS walk their own models' modules.
The original UNet is built here block by block, as CompVis' and sgm's constructors count them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SD15_LEVELS = ((320, 1), (640, 1), (1280, 1), (1280, 0))
SDXL_LEVELS = ((320, 0), (640, 2), (1280, 10))


@dataclass(frozen=True)
class Shape:
    """What tells the families apart: levels as (channels, transformer depth), text layers."""

    levels: tuple[tuple[int, int], ...]
    middle: int  # transformer depth
    has_label: bool
    text_layers: Mapping[str, int]  # prefix in adapter files -> layers


FAMILIES = {
    "sd1": Shape(SD15_LEVELS, 1, False, {"lora_te": 12}),
    "sd2": Shape(SD15_LEVELS, 1, False, {"lora_te": 24}),
    "sdxl": Shape(SDXL_LEVELS, 10, True, {"lora_te1": 12, "lora_te2": 32}),
}
_TEXT = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{part}_proj" for part in ("k", "q", "v", "out")))
_SUFFIXES = {
    "lora": ("lora_up.weight", "lora_down.weight", "alpha"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"),
}


def original_unet(shape: Shape) -> Iterator[tuple[str, str]]:
    """Every Linear and convolution of the original's UNet: (kind of block, path)."""
    yield from (("outside", name) for name in ("time_embed.0", "time_embed.2", "out.2"))
    if shape.has_label:
        yield from (("outside", f"label_emb.0.{number}") for number in (0, 2))
    yield "outside", "input_blocks.0.0"
    number, channels, skips = 0, shape.levels[0][0], [shape.levels[0][0]]
    for level, (width, depth) in enumerate(shape.levels):
        for _ in range(2):
            number += 1
            yield from _resnet(f"input_blocks.{number}.0", channels != width)
            yield from _transformer(f"input_blocks.{number}.1", depth)
            channels = width
            skips.append(width)
        if level < len(shape.levels) - 1:
            number += 1
            yield "sampler", f"input_blocks.{number}.0.op"
            skips.append(width)
    yield from _resnet("middle_block.0", False)
    yield from _transformer("middle_block.1", shape.middle)
    yield from _resnet("middle_block.2", False)
    number = 0
    for level, (width, depth) in reversed(list(enumerate(shape.levels))):
        for place in range(3):
            yield from _resnet(f"output_blocks.{number}.0", channels + skips.pop() != width)
            yield from _transformer(f"output_blocks.{number}.1", depth)
            if level and place == 2:
                yield "sampler", f"output_blocks.{number}.{1 + bool(depth)}.conv"
            channels = width
            number += 1


def comfyui(family: str) -> set[str]:
    """Names of layers in `model_lora_keys_unet` and `model_lora_keys_clip`.

    `lora_unet_` with the original's path or with diffusers'; of text encoders six kinds of layers.
    """
    shape = FAMILIES[family]
    names = {f"lora_unet_{path.replace('.', '_')}" for _, path in original_unet(shape)}
    names |= {f"lora_unet_{path.replace('.', '_')}" for _, path in diffusers_unet(shape)}
    return names | text_names(shape, numbers=32)


def automatic1111(family: str, name: str) -> bool:
    """Whether `convert_diffusers_name_to_compvis` leads to a module of the original model."""
    shape = FAMILIES[family]
    modules = {f"diffusion_model_{path.replace('.', '_')}" for _, path in original_unet(shape)}
    if name.startswith("lora_te"):
        return name in text_names(shape)
    rest = name.removeprefix("lora_unet_")
    if (found := re.match(r"(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", rest)) or (
        found := re.match(r"(mid)_block()_(attentions|resnets)_(\d+)_(.+)", rest)
    ):
        side, block, kind, number, layer = found.groups()
        is_attention = kind == "attentions"
        inner = layer if is_attention else _A1111_RESNET[layer]
        if side == "down":
            place = f"input_blocks_{1 + int(block) * 3 + int(number)}_{int(is_attention)}"
        elif side == "up":
            place = f"output_blocks_{int(block) * 3 + int(number)}_{int(is_attention)}"
        else:
            place = f"middle_block_{1 if is_attention else 2 * int(number)}"
        return f"diffusion_model_{place}_{inner}" in modules
    if found := re.match(r"down_blocks_(\d+)_downsamplers_0_conv", rest):
        return f"diffusion_model_input_blocks_{3 + int(found[1]) * 3}_0_op" in modules
    if found := re.match(r"up_blocks_(\d+)_upsamplers_0_conv", rest):
        place = 2 if int(found[1]) > 0 else 1
        return f"diffusion_model_output_blocks_{2 + int(found[1]) * 3}_{place}_conv" in modules
    return f"diffusion_model_{rest}" in modules


def sd_scripts(family: str) -> set[str]:
    """Names of layers that `LoRANetwork` makes: of SDXL the UNet is its own, in sgm's names."""
    shape = FAMILIES[family]
    unet = original_unet(shape) if family == "sdxl" else diffusers_unet(shape)
    names = {f"lora_unet_{path.replace('.', '_')}" for kind, path in unet if kind != "outside"}
    return names | text_names(shape)


def lycoris(family: str) -> set[str]:
    """Prefix and module path; within kohya-ss/sd-scripts, whose models it is given."""
    shape = FAMILIES[family]
    unet = original_unet(shape) if family == "sdxl" else diffusers_unet(shape)
    return {f"lora_unet_{path.replace('.', '_')}" for _, path in unet} | text_names(shape)


def text_names(shape: Shape, *, numbers: int | None = None) -> set[str]:
    return {
        f"{prefix}_text_model_encoder_layers_{number}_{layer}"
        for prefix, count in shape.text_layers.items()
        for number in range(numbers or count)
        for layer in _TEXT
    }


def diffusers_unet(shape: Shape) -> Iterator[tuple[str, str]]:
    """The same layers in the order and under the names of diffusers' UNet2DConditionModel."""
    yield from (("outside", name) for name in ("conv_in", "conv_out"))
    yield from (("outside", f"time_embedding.linear_{number}") for number in (1, 2))
    if shape.has_label:
        yield from (("outside", f"add_embedding.linear_{number}") for number in (1, 2))
    last = len(shape.levels) - 1
    channels, skips = shape.levels[0][0], [shape.levels[0][0]]
    for level, (width, depth) in enumerate(shape.levels):
        for number in range(2):
            yield from _diffusers_resnet(f"down_blocks.{level}.resnets.{number}", channels != width)
            yield from _transformer(f"down_blocks.{level}.attentions.{number}", depth)
            channels = width
            skips.append(width)
        if level < last:
            yield "sampler", f"down_blocks.{level}.downsamplers.0.conv"
            skips.append(width)
    for number in range(2):
        yield from _diffusers_resnet(f"mid_block.resnets.{number}", False)
    yield from _transformer("mid_block.attentions.0", shape.middle)
    for level, (width, depth) in enumerate(reversed(shape.levels)):
        for number in range(3):
            is_wider = channels + skips.pop() != width
            yield from _diffusers_resnet(f"up_blocks.{level}.resnets.{number}", is_wider)
            yield from _transformer(f"up_blocks.{level}.attentions.{number}", depth)
            channels = width
        if level < last:
            yield "sampler", f"up_blocks.{level}.upsamplers.0.conv"


def accepted_suffixes(names: set[str]) -> bool:
    """Whether a layer's tensors are a whole set of one algorithm's, as every loader asks for."""
    own = names - {"dora_scale"}
    if "alpha" not in own:
        return False
    if own in (set(_SUFFIXES["lora"]), set(_SUFFIXES["loha"])):
        return True
    if not own <= set(_SUFFIXES["lokr"]):
        return False
    halves = [{name for name in own if name.startswith(f"lokr_w{number}")} for number in (1, 2)]
    return all(
        half in ({f"lokr_w{number}"}, {f"lokr_w{number}_a", f"lokr_w{number}_b"})
        for number, half in enumerate(halves, start=1)
    )


_A1111_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def _resnet(path: str, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    inner = ["in_layers.2", "emb_layers.1", "out_layers.3"]
    inner += ["skip_connection"] if has_shortcut else []
    yield from (("resnet", f"{path}.{layer}") for layer in inner)


def _diffusers_resnet(path: str, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    inner = ["conv1", "time_emb_proj", "conv2"] + (["conv_shortcut"] if has_shortcut else [])
    yield from (("resnet", f"{path}.{layer}") for layer in inner)


def _transformer(path: str, depth: int) -> Iterator[tuple[str, str]]:
    if not depth:
        return
    yield from (("transformer", f"{path}.{layer}") for layer in ("proj_in", "proj_out"))
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        for attention in ("attn1", "attn2"):
            for layer in ("to_q", "to_k", "to_v", "to_out.0"):
                yield "transformer", f"{block}.{attention}.{layer}"
        yield from (("transformer", f"{block}.ff.net.{layer}") for layer in ("0.proj", "2"))
