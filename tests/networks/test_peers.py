"""One layer: the same outputs and gradients as peft computes, with its own code as the oracle."""

from __future__ import annotations

import pytest
import torch
from probes import perturb
from torch import nn

from networks.dora import decompose, decomposed_addition
from networks.loha import LoHaLayer
from networks.lokr import LoKrLayer
from networks.lora import LoRALayer

BASES = pytest.mark.parametrize(
    "base",
    [
        nn.Linear(16, 20),
        nn.Conv2d(16, 20, 1),
        nn.Conv2d(16, 20, 3, padding=1),
        nn.Conv2d(16, 20, 3, stride=2, padding=1),
    ],
    ids=["linear", "conv1x1", "conv3x3", "strided"],
)


def input_for(base: nn.Module) -> torch.Tensor:
    return torch.randn((2, 16, 8, 8) if isinstance(base, nn.Conv2d) else (2, 5, 16))


def with_peft(base: nn.Module, config) -> nn.Module:
    """The layer as peft wraps it."""
    from copy import deepcopy

    from peft import inject_adapter_in_model

    holder = nn.ModuleDict({"layer": deepcopy(base)})
    return inject_adapter_in_model(config, holder)["layer"]


def compare(layer, base, theirs, pairs) -> None:
    """Equal outputs, and equal gradients of pairs of tensors, for equal weights."""
    with torch.no_grad():
        for ours, peer in pairs:
            peer.copy_(ours.reshape(peer.shape))
    x = input_for(base)
    plain = base(x).detach()
    if layer.dora_scale is None:
        found = plain + layer(x)
    else:
        found = plain + decomposed_addition(layer, base, x, plain)
    expected = theirs(x)
    assert (found - plain).abs().max() > 1e-2
    assert torch.allclose(found, expected, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, peer in pairs:
        gradient = peer.grad.reshape(ours.shape)
        assert torch.allclose(ours.grad, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())


@BASES
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_lora_and_dora_of_rows(base, dora):
    from peft import LoraConfig

    config = LoraConfig(
        r=4, lora_alpha=8, use_dora=dora, target_modules=["layer"], use_rslora=not dora
    )
    theirs = with_peft(base, config)
    alpha = 8.0 if dora else 8.0 * 4**0.5  # rsLoRA: alpha / sqrt(rank)
    layer = LoRALayer(base, rank=4, alpha=alpha)
    if dora:
        decompose(layer, base.weight, "output")
    perturb(layer)
    pairs = [
        (layer.lora_down.weight, theirs.lora_A["default"].weight),
        (layer.lora_up.weight, theirs.lora_B["default"].weight),
    ]
    if dora:
        pairs.append((layer.dora_scale, theirs.lora_magnitude_vector["default"].weight))
    compare(layer, base, theirs, pairs)


@BASES
@pytest.mark.parametrize(
    ("rank", "both"), [(2, False), (1, True), (12, False)], ids=["low", "both", "whole"]
)
def test_peft_lokr(base, rank, both):
    from peft import LoKrConfig

    layer = LoKrLayer(base, rank=rank, alpha=rank, factor=4, decompose_both=both)
    config = LoKrConfig(
        r=rank,
        alpha=rank,
        decompose_both=both,
        decompose_factor=4,
        target_modules=["layer"],
    )
    theirs = with_peft(base, config)
    perturb(layer)
    pairs = [(p, getattr(theirs, name)["default"]) for name, p in layer.named_parameters()]
    assert len(pairs) == (4 if both else 2 if rank == 12 else 3)
    compare(layer, base, theirs, pairs)


@BASES
def test_peft_loha(base):
    from peft import LoHaConfig

    layer = LoHaLayer(base, rank=3, alpha=2.0)
    theirs = with_peft(base, LoHaConfig(r=3, alpha=2, target_modules=["layer"]))
    perturb(layer)
    pairs = [(p, getattr(theirs, name)["default"]) for name, p in layer.named_parameters()]
    assert len(pairs) == 4
    compare(layer, base, theirs, pairs)
