"""What other programs make of an adapter file: LyCORIS, diffusers with peft, and the formulas."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora.LoRA", {"rank": 4}),
    "locon": ("lora.LoRA", {"rank": 4, "conv_rank": 3, "conv_alpha": 1}),
    "lora-rs": ("lora.LoRA", {"rank": 4, "conv_rank": 2, "rank_stabilized": True}),
    "lora-dynamic": ("lora.LoRA", {"rank": "dynamic", "conv_rank": "dynamic", "alpha": 1}),
    "lora-blocks": (
        "lora.LoRA",
        {
            "rank": 4,
            "conv_rank": 2,
            "rank_stabilized": True,
            "blocks": {
                "unet.up_blocks": {"rank": 2, "alpha": 5, "conv_alpha": 1},
                "unet.*.attn1": {"alpha": 1},
                "text_encoders": {"rank": 3, "alpha": 1},
            },
        },
    ),
    "loha": ("loha.LoHa", {"rank": 4, "conv_rank": 4}),
    "loha-rs": ("loha.LoHa", {"rank": 4, "conv_rank": 2, "rank_stabilized": True}),
    "lokr": ("lokr.LoKr", {"rank": 1, "conv_rank": 1, "factor": 4}),
    "lokr-alphas": ("lokr.LoKr", {"rank": 3, "conv_rank": 2, "factor": 4, "conv_alpha": 5}),
    "lokr-whole": ("lokr.LoKr", {"rank": 100, "conv_rank": 100, "factor": 4}),
    "lokr-both": ("lokr.LoKr", {"rank": 1, "conv_rank": 4, "factor": 8, "decompose_both": True}),
    "lokr-low": ("lokr.LoKr", {"rank": 1, "conv_rank": 1, "factor": 8, "decompose_both": True}),
    **{
        f"{name}-{axis}": (module, {**own, "dora": axis})
        for name, module, own in (
            ("lora", "lora.LoRA", {"rank": 4, "conv_rank": 4}),
            ("loha", "loha.LoHa", {"rank": 4, "conv_rank": 2}),
            ("lokr", "lokr.LoKr", {"rank": 1, "conv_rank": 1, "factor": 4}),
        )
        for axis in ("input", "output")
    },
}
"""Adapters of every algorithm, with what makes ranks, alphas and shapes differ between layers."""

NOT_FOR_LYCORIS = [
    "lokr-low",  # it can't tell the factor of convolutions of which both matrices are of low rank
    *(name for name in ADAPTERS if name.endswith("-input")),  # it knows magnitudes of rows only
]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_adapter(name: str):
    """One of ADAPTERS, for the UNet and all text encoders."""
    from modules.component import build

    module, options = ADAPTERS[name]
    args = {"alpha": 2, "targets": ["unet", "text_encoders"], **options}
    return build(f"networks.{module}", args)


def randomise(network: nn.Module, *, seed: int = 5) -> None:
    """Random weights, with a moderate effect on every layer; magnitudes near those of the base."""
    from networks.dora import magnitudes

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, layer in network.layers.items():
            for own, parameter in layer.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if own == "dora_scale":
                    usual = magnitudes(network._base[name].weight, layer.dora_axis)
                    parameter.copy_(usual * (1 + 0.1 * noise))
                else:
                    parameter.copy_(noise * (0.2 if own.startswith("lora") else 0.3))


def kinds_of(layers: Mapping[str, Any]) -> set[str]:
    """The kinds of layers that an adapter stands beside."""
    found = set()
    for base in layers.values():
        if isinstance(base, nn.Linear):
            found.add("linear")
        else:
            size = "strided" if base.stride != (1, 1) else f"conv{base.kernel_size[0]}"
            found.add(size)
    return found


def apply_lycoris(tensors: Mapping[str, Tensor], layers: Mapping[str, Any]) -> list[Any]:
    """Put LyCORIS' modules, made of a file's tensors, in place of the layers' own forward.

    One by one: its network can't be made beside diffusers' UNet, since two of its layers get the
    same name.
    """
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris.modules import get_module, make_module

    made = []
    for name, base in layers.items():
        kind, parameters = get_module(tensors, name)
        with torch.no_grad():
            module = make_module(kind, parameters, name, base)
        module.eval()
        module.apply_to()
        made.append(module)
    return made


@torch.no_grad()
def make_lycoris(kind: str, layers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Any]:
    """LyCORIS' own modules with random weights, in place of the layers' own forward."""
    from lycoris import modules

    generator, made = torch.Generator().manual_seed(9), []
    for name, base in layers.items():
        module = getattr(modules, kind)(name, base, 1.0, **{"lora_dim": 4, **options})
        for own, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if own == "dora_scale":
                parameter.mul_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (0.2 if own.startswith("lora") else 0.3))
        module.eval()
        module.apply_to()
        made.append(module)
    return made


def load_in_diffusers(model: Any, path: Path) -> None:
    """Let the pipeline of diffusers that a model's pieces make load a file, in float32."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pieces = {**model.pieces(), "scheduler": model.scheduler}
    if "text_encoder_2" in pieces:
        pipeline = StableDiffusionXLPipeline(**pieces)
    else:
        absent = {"safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**pieces, **absent, requires_safety_checker=False)
    pipeline.load_lora_weights(path)
    for name, piece in pieces.items():
        if name.startswith(("unet", "text_encoder")):
            piece.to(torch.float32)  # it keeps the file's precision


@torch.no_grad()
def write_out(path: Path, layers: Mapping[str, Any]) -> None:
    """Change the layers' weights by the papers' formulas, in float64, from a file's tensors."""
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    for name, base in layers.items():
        own = {
            k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")
        }
        weight = base.weight.double()
        changed = weight + _change(own).reshape(weight.shape)
        if "dora_scale" in own:
            changed = _with_magnitudes(changed, own["dora_scale"])
        base.weight.copy_(changed)


def _change(own: Mapping[str, Tensor]) -> Tensor:
    if "lora_up.weight" in own:
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        return own["alpha"] / len(down) * (up.flatten(1) @ down.flatten(1))
    if "hada_w1_a" in own:
        first = own["hada_w1_a"] @ own["hada_w1_b"]
        return own["alpha"] / len(own["hada_w1_b"]) * first * (own["hada_w2_a"] @ own["hada_w2_b"])
    scale, factors = 1.0, []
    for name in ("lokr_w1", "lokr_w2"):
        if name not in own:
            scale = own["alpha"] / own[f"{name}_a"].shape[1]
            factors.append(own[f"{name}_a"] @ own[f"{name}_b"])
        else:
            factors.append(own[name])
    small, large = factors
    rows = [torch.cat([scale * number * large for number in row], dim=1) for row in small]
    return torch.cat(rows)


def _with_magnitudes(changed: Tensor, magnitudes: Tensor) -> Tensor:
    """Each row, or each column, brought to its magnitude."""
    dim = max(range(changed.dim()), key=lambda d: magnitudes.shape[d])
    slices = [
        part * size / part.pow(2).sum().sqrt()
        for part, size in zip(changed.unbind(dim), magnitudes.flatten(), strict=True)
    ]
    return torch.stack(slices, dim)
