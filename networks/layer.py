"""One layer of an adapter, and what it asks of the base's layer beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.changes import Change
from networks.dropout import Dropout


class AdapterLayer(nn.Module):
    """What one layer of the base gets added; a fresh one changes nothing.

    Every parameter is a factor of the change, except `dora_scale`: the magnitudes of a DoRA, if it
    is one (`networks/dora.py`).

    Args:
        base: the Linear or Conv2d layer.
        rank: of the factors.
        alpha: the change is scaled by alpha / rank.
    """

    scaled_factors: ClassVar[Sequence[str]] = ()
    """The factor that takes up what a file's alpha leaves of the scale: the first that is there."""
    is_whole: bool = False  # without a rank, so that alpha has no effect

    constants: ClassVar[Sequence[str]] = ("alpha",)  # what a run's state needs not hold

    alpha: Tensor
    dora_scale: nn.Parameter | None

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__()
        self.rank = rank
        self.is_spatial = is_spatial(base)
        self.dora_axis: str | None = None
        self.dropouts = Dropout()
        self.register_buffer("alpha", torch.tensor(float(alpha), device="cpu"))  # never on `meta`
        self.scale = float(self.alpha) / rank  # as a reader of the file will compute it
        self.register_parameter("dora_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """The addition to the layer's output for the input `x`."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def change(self, multiplier: float) -> Change | None:
        """The change of a Linear layer's weight as a function, so many times; None: has none."""
        return None

    def change_factors(self) -> tuple[Tensor, ...]:
        """What `change` is a function of."""
        return ()

    def delta_weight(self) -> Tensor:
        """The same as a change of the layer's weight, in its shape, float32."""
        raise TypeError(f"{type(self).__name__} has no delta_weight")

    @staticmethod
    def usable_rank(base: nn.Module, rank: int) -> int:
        """The rank that a layer beside `base` gets when `rank` is wanted."""
        return rank

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        """The rank of a layer's tensors in a file; KeyError if they are of another kind."""
        raise TypeError("a layer says how its rank is read")

    @classmethod
    def from_shapes(cls, base: nn.Module, tensors: Mapping[str, Tensor]) -> AdapterLayer:
        """A layer that a file's tensors can be loaded into.

        Raises:
            KeyError, ValueError: they are of another kind, or for another layer.
        """
        return cls(base, rank=cls.rank_of(tensors), alpha=float(tensors["alpha"]))

    def strength(self) -> float:
        """0.0 if the layer is dropped in this call, else 1.0.

        A dropped one computes along, so that every rank of a distributed run has its gradients.
        """
        dropped = self.training and self.dropouts.module_dropout and not self.dropouts.keeps_layer()
        return 0.0 if dropped else 1.0

    def factors(self) -> list[nn.Parameter]:
        """What the change is the product of."""
        return [p for name, p in self.named_parameters() if name != "dora_scale"]

    @torch.no_grad()
    def limit_norm(self, maximum: float) -> None:
        """Scale the factors, each alike, so that the change's norm is at most `maximum`.

        Nothing waits for the device. Source: `scale_weight_norms` of kohya-ss/sd-scripts.
        """
        factors = self.factors()
        ratio = (maximum / self.delta_weight().norm()).clamp(max=1.0)
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))


def plain_addition(layer: AdapterLayer, base: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """What the base's output for `x` gets added."""
    return layer(x)


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


def kernel_of(layer: nn.Module) -> tuple[int, ...]:
    """A convolution's kernel, () of a Linear layer."""
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()


def operation_of(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """What a layer does with its input and its weight, without the bias."""
    if not isinstance(layer, nn.Conv2d):
        return F.linear
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    return partial(F.conv2d, **options)


def dynamic_rank(layer: nn.Module) -> int:
    """The original sd-trainer's rank by size: the smaller root of in and out, rounded up."""
    return min(math.ceil(math.sqrt(size)) for size in sizes_of(layer))
