"""The forward hook that adds what an adapter's layer computes to the base's output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from networks.dora import decomposed_addition
from networks.layer import AdapterLayer, plain_addition


def adding(layer: AdapterLayer, multiplier: Callable[[], float]) -> Callable[..., Tensor]:
    """A hook for the base's layer; `multiplier` is asked at each call."""
    addition = plain_addition if layer.dora_scale is None else decomposed_addition

    def add(base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = addition(layer, base, args[0], output)
        strength = multiplier() * layer.strength()
        if strength != 1.0:
            added = added * strength
        return output + added.to(output.dtype)

    return add
