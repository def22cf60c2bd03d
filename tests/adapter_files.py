"""Adapter files of random layers, and what a model computes with them."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from torch import Tensor
from variants import EVERYTHING

from networks.dora import weight_change


def save(
    path: Path, network, model=None, *, seed: int = 0, dtype=torch.float32
) -> dict[str, Tensor]:
    """Write `network` with random layers; returns its changes by module path of the model."""
    model = model or tiny.make_sd()
    network.attach(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("dora_scale"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.mul_(1.1)
    network.save(path, dtype=dtype, metadata=network.describe(model))
    found = {
        network._paths[name]: weight_change(layer, network._base[name].weight).detach()
        for name, layer in network._named_layers()
    }
    network.detach()
    return found


def changes(path: Path, make=tiny.make_sd) -> dict[str, Tensor]:
    """The changes of a LoRA's file by module path, as the network reads it."""
    from networks.lora import LoRA

    model = make()
    network = LoRA(rank=1, conv_rank=1, targets=EVERYTHING)
    network.attach(model)
    network.load(path)
    paths = {**network._paths, **network._beside}
    return {
        paths[name]: layer.delta_weight().detach()
        for name, layer in network._named_layers()
        if layer.lora_up.weight.any()
    }


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Check that two sets of changes agree, by the greatest number of each layer."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert error < tolerance, f"{name}: {error:.1e}"
