"""One layer of an adapter, and what it asks of the base's layer beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class AdapterLayer(nn.Module):
    """What one layer of the base gets added; a fresh one changes nothing.

    Args:
        base: the Linear or Conv2d layer.
        rank: of the factors.
        alpha: the change is scaled by alpha / rank.
    """

    alpha: Tensor

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__()
        self.rank = rank
        self.scale = alpha / rank
        self.is_spatial = is_spatial(base)
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """The addition to the layer's output for the input `x`."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def delta_weight(self) -> Tensor:
        """The same as a change of the layer's weight, in its shape, float32."""
        raise TypeError(f"{type(self).__name__} has no delta_weight")

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        """The rank of a layer's tensors in a file; KeyError if they are of another kind."""
        raise TypeError("a layer says how its rank is read")


def is_spatial(layer: nn.Module) -> bool:
    """Whether a layer's kernel is larger than 1x1."""
    return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Input and output channels of a Linear or Conv2d layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    raise TypeError(f"adapters are for Linear and Conv2d layers, not {type(layer).__name__}")


def dynamic_rank(layer: nn.Module) -> int:
    """The original sd-trainer's rank by size: the smaller root of in and out, rounded up."""
    return min(math.ceil(math.sqrt(size)) for size in sizes_of(layer))
