"""How a layer of an adapter adds its part to the output of the base's layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from networks.dora import decomposed_addition
from networks.layer import AdapterLayer, plain_addition


class Strength(Protocol):
    """What has a strength that may change at any time: a network."""

    multiplier: float


def make_hook(network: Strength, layer: AdapterLayer) -> Callable[..., Tensor]:
    """A forward hook for the base's layer beside `layer`."""
    addition = plain_addition if layer.dora_scale is None else decomposed_addition

    def add(base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = addition(layer, base, args[0], output)
        strength = network.multiplier * layer.strength()
        if strength != 1.0:
            added = added * strength
        return output + added.to(output.dtype)

    return add
