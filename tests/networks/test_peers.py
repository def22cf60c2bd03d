"""The same numbers as peft and LyCORIS compute, with their own code as the oracle."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors.torch import load_file
from torch import nn

from networks.dora import decompose, decomposed_addition
from networks.loha import LoHa
from networks.lokr import LoKr, LoKrLayer
from networks.lora import LoRA, LoRALayer

EVERYTHING = ("unet", "text_encoders")
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


NETWORKS = {
    "lora": (LoRA, {"rank": 4}),
    "lora-ranks": (LoRA, {"rank": 4, "conv_rank": 2, "blocks": {"unet.up_blocks": {"rank": 2}}}),
    "lora-rs": (LoRA, {"rank": 4, "rank_stabilized": True}),
    "lora-output": (LoRA, {"rank": 4, "dora": "output"}),
    "loha": (LoHa, {"rank": 4}),
    "loha-output": (LoHa, {"rank": 4, "dora": "output"}),
    "lokr": (LoKr, {"rank": 1, "factor": 4}),
    "lokr-whole": (LoKr, {"rank": 100, "factor": 4}),
    "lokr-both": (LoKr, {"rank": 1, "factor": 8, "decompose_both": True}),
    "lokr-output": (LoKr, {"rank": 1, "factor": 4, "dora": "output"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_lycoris_computes_the_same_from_our_files(name, tmp_path):
    algorithm, options = NETWORKS[name]
    model = tiny.make_sd()
    plain = outputs(model)
    network = algorithm(**{"alpha": 2, "conv_rank": 4, "targets": EVERYTHING, **options})
    network.attach(model)
    perturb(network, scale=0.1 if network.dora else 0.3)
    if network.dora is not None:  # as trained: magnitudes near the weights'
        with torch.no_grad():
            for key, layer in network.layers.items():
                layer.dora_scale.copy_(
                    network._base[key].weight.flatten(1).norm(dim=1).view_as(layer.dora_scale) * 1.1
                )
    ours = outputs(model)
    path = tmp_path / "adapter.safetensors"
    network.save(path, dtype=torch.float32, metadata=network.describe(model))
    network.detach()
    apply_lycoris(load_file(path), network._base)
    for mine, theirs, base in zip(ours, outputs(model), plain, strict=True):
        effect = (mine - base).norm()
        assert effect > 1e-3 * base.norm()
        assert (mine - theirs).norm() < 1e-4 * effect


def apply_lycoris(tensors, layers) -> None:
    """Put LyCORIS' modules, made of a file's tensors, in place of the layers' own forward.

    One by one: its network can't be made beside diffusers' UNet, since two of its layers get the
    same name.
    """
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris.modules import get_module, make_module

    for name, base in layers.items():
        kind, parameters = get_module(tensors, name)
        with torch.no_grad():
            module = make_module(kind, parameters, name, base)
        module.eval()
        module.apply_to()
