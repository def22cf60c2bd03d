"""Adapters that other packages make, apply and write: LyCORIS', PEFT's and diffusers'."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from modules.models.portable import classic_name

WORDS = {"unet": "lora_unet", "text_encoders.0": "lora_te", "text_encoders.1": "lora_te2"}


def randomize(parameters: Mapping[str, torch.Tensor], *, scale: float = 0.2) -> None:
    """Give factors values, and magnitudes ones near their own."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in parameters.items():
            noise = torch.randn(parameter.shape, generator=generator)
            if "dora_scale" in name or "magnitude" in name:
                parameter.mul_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * scale)


def layers_of(model: Any, *, everything: bool = False) -> Iterator[tuple[str, str, nn.Module]]:
    """Component, path and layer of what LyCORIS' full preset adapts, or every layer of the UNet."""
    for component, module in model.components().items():
        for path, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            if component == "unet" or ".layers." in path:
                yield component, path, layer


def ranks_of(number: int) -> tuple[int, float]:
    """A rank and an alpha of each layer, other than each other and than the next one's."""
    return 2 + number % 3, 1.0 + number % 2


def write_lycoris(
    model: Any,
    path: Path,
    algorithm: str,
    *,
    original: bool = False,
    flat: bool = False,
    prefixes: Mapping[str, str] = WORDS,
    without: str = "\0",
    **options: Any,
) -> Path:
    """Put LyCORIS' modules on every layer of `model`, and write them as it does.

    `original` takes the UNet's names of sgm, `flat` the text encoders' without `text_model`.
    """
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris.kohya import network_module_dict

    tensors = {}
    for number, (component, inner, layer) in enumerate(layers_of(model)):
        if without in inner:
            continue
        name = inner
        if component == "unet" and original:
            from modules.models.compvis import unet_module_name

            name = unet_module_name(inner, model.denoiser.config)
        elif component != "unet" and not flat:
            name = classic_name(model.components()[component], inner)
        name = f"{prefixes[component]}_{name.replace('.', '_')}"
        rank, alpha = ranks_of(number)
        module = network_module_dict[algorithm](
            name, layer, lora_dim=rank, alpha=alpha, **{"factor": 4, **options}
        )
        randomize(dict(module.named_parameters()))
        module.eval()
        module.apply_to()
        tensors |= {f"{name}.{k}": v.detach().clone() for k, v in module.state_dict().items()}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def patterns(module: nn.Module, *, names: tuple[str, ...]) -> dict[str, dict]:
    """Ranks and alphas of PEFT by pattern, other ones for each layer of these names."""
    paths = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(names)
    ]
    found = {path: ranks_of(number) for number, path in enumerate(paths)}
    return {
        "rank_pattern": {path: rank for path, (rank, _) in found.items()},
        "alpha_pattern": {path: alpha for path, (_, alpha) in found.items()},
    }


UNET_NAMES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2")
CONV_NAMES = ("conv1", "conv2", "time_emb_proj", "conv_shortcut", "conv_in", "linear_1")
TEXT_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def with_peft(model: Any, config_class: Any, *, conv: bool = True, **options: Any) -> dict:
    """Wrap the UNet and the text encoders of `model` with PEFT; returns these by piece."""
    from peft import get_peft_model

    wrapped = {}
    for number, (component, module) in enumerate(model.components().items()):
        is_unet = component == "unet"
        names = (UNET_NAMES + (CONV_NAMES if conv else ())) if is_unet else TEXT_NAMES
        config = config_class(
            r=3, target_modules=list(names), **patterns(module, names=names), **options
        )
        piece = ("unet", "text_encoder", "text_encoder_2")[number]
        wrapped[piece] = get_peft_model(module, config)
        own = {n: p for n, p in wrapped[piece].named_parameters() if p.requires_grad}
        assert own
        randomize(own)
        wrapped[piece].eval()
    return wrapped


def twin(model: Any) -> Any:
    """Another model with the same weights."""
    return copy.deepcopy(model)
