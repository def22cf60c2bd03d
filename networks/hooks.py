"""How an adapter's layer joins the base's: its addition by a hook, or both as one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.mixed_precision import compute_dtype, with_autocast
from networks.compute_copies import ComputeCopies
from networks.dora import decomposed_addition
from networks.dropout import Dropout
from networks.layer import AdapterLayer, plain_addition
from networks.low_rank import LowRankLinear


class Removable(Protocol):
    """What takes an adapter's layer off again."""

    def remove(self) -> None:
        """Let the base's layer compute alone."""


def join_all(
    pairs: Sequence[tuple[AdapterLayer, nn.Module]], multiplier: Callable[[], float]
) -> list[Removable]:
    """Let layers of the base compute with those of one network, which share their casts."""
    copies = ComputeCopies([p for layer, _ in pairs for p in layer.parameters()])
    return [join(layer, base, multiplier, copies) for layer, base in pairs]


def join(
    layer: AdapterLayer,
    base: nn.Module,
    multiplier: Callable[[], float],
    copies: ComputeCopies,
) -> Removable:
    """Let a layer of the base compute with an adapter's; `multiplier` is asked at each call."""
    add = adding(layer, multiplier)
    pair = layer.low_rank_pair() if layer.dora_scale is None else None
    if pair is not None and type(base) is nn.Linear and "forward" not in vars(base):
        return _Joined(layer, base, pair, multiplier, copies, add)
    return base.register_forward_hook(add)


def adding(layer: AdapterLayer, multiplier: Callable[[], float]) -> Callable[..., Tensor]:
    """A hook for the base's layer; `multiplier` is asked at each call."""
    addition = plain_addition if layer.dora_scale is None else decomposed_addition

    def add(base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with with_autocast(output):
            added = addition(layer, base, args[0], output)
        strength = multiplier() * layer.strength()
        if strength != 1.0:
            added = added * strength
        return output + added.to(output.dtype)

    return add


class _Joined:
    """Takes the place of a Linear layer's forward; what it can't do as one goes by the hook."""

    def __init__(
        self,
        layer: AdapterLayer,
        base: nn.Linear,
        pair: tuple[Tensor, Tensor],
        multiplier: Callable[[], float],
        copies: ComputeCopies,
        add: Callable[..., Tensor],
    ) -> None:
        self._layer, self._base, self._pair = layer, base, pair
        self._multiplier, self._copies, self._add = multiplier, copies, add
        vars(base)["forward"] = self

    def __call__(self, x: Tensor) -> Tensor:
        layer, base, (down, up) = self._layer, self._base, self._pair
        if type(base) is not nn.Linear:  # its weight is stored in 8 bits since
            return self._add(base, (x,), type(base).forward(base, x))
        weight, dtype = base.weight, compute_dtype(x)
        if torch.compiler.is_compiling():  # which sees to casts and memory itself
            return self._add(base, (x,), type(base).forward(base, x))
        drops = layer.training and layer.dropouts != Dropout()
        if drops or weight.requires_grad or weight.dtype != dtype:
            return self._add(base, (x,), type(base).forward(base, x))
        return LowRankLinear.apply(  # type: ignore[no-any-return]
            x.to(dtype),
            weight,
            base.bias,
            self._copies.of(down, dtype),
            self._copies.of(up, dtype),
            layer.scale * self._multiplier(),
        )

    def remove(self) -> None:
        """Give the layer its own forward back."""
        vars(self._base).pop("forward", None)
