"""How an adapter's layer joins the base's: its addition by a hook, or both as one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.mixed_precision import compute_dtype, with_autocast
from networks.changes import Change, Decomposed, LowRank
from networks.compute_copies import ComputeCopies
from networks.costs import merging_pays
from networks.dora import decomposed_addition
from networks.dropout import Dropout
from networks.layer import AdapterLayer, plain_addition
from networks.low_rank import LowRankLinear, LowRankLinears
from networks.merged import MergedLinear


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
    if type(base) is nn.Linear and layer.change(1.0) is not None and "forward" not in vars(base):
        return _Joined(layer, base, multiplier, copies)
    return base.register_forward_hook(adding(layer, multiplier))


def adding(
    layer: AdapterLayer, multiplier: Callable[[], float], *, is_hook: bool = True
) -> Callable[..., Tensor]:
    """A hook for the base's layer; `multiplier` is asked at each call.

    Not as a hook it is called with the base's own output, which nobody has changed.
    """
    addition: Callable[..., Tensor] = plain_addition
    if layer.dora_scale is not None:
        addition = partial(decomposed_addition, is_plain=not is_hook)

    def add(base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with with_autocast(output):
            added = addition(layer, base, args[0], output)
        strength = multiplier() * layer.strength()
        if strength != 1.0:
            added = added * strength
        return output + added.to(output.dtype)

    return add


class _Plan(NamedTuple):
    change: Change
    factors: tuple[Tensor, ...]
    dtype: torch.dtype
    merges: bool


class _Joined:
    """Takes the place of a Linear layer's forward; what it can't do as one goes by the hook."""

    def __init__(
        self,
        layer: AdapterLayer,
        base: nn.Linear,
        multiplier: Callable[[], float],
        copies: ComputeCopies,
    ) -> None:
        self._layer, self._base = layer, base
        self._multiplier, self._copies = multiplier, copies
        self._add = adding(layer, multiplier, is_hook=False)
        vars(base)["forward"] = self

    def __call__(self, x: Tensor) -> Tensor:
        base = self._base
        output = self._as_one(x)
        if output is None:
            return self._add(base, (x,), type(base).forward(base, x))
        return output

    def together(self, layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...] | None:
        """Outputs of several layers for one input, this one's the first; None: each by itself."""
        given: list[Any] = []
        dtype = compute_dtype(x)
        for base in layers:
            own = vars(base).get("forward")
            if not isinstance(own, _Joined) or _is_hooked(base):
                return None
            plan = own._plan(x)
            if plan is None or plan.merges or not isinstance(plan.change, LowRank):
                return None
            if not all(factor.requires_grad for factor in plan.factors):
                return None  # of a network that rests, one by one nothing is computed in vain
            low = (own._copies.of(factor, dtype) for factor in plan.factors)
            given += [base.weight, base.bias, *low, plan.change.scale]
        return LowRankLinears.apply(x.to(dtype), *given)  # type: ignore[no-any-return]

    def _as_one(self, x: Tensor) -> Tensor | None:
        """Base and change as one operation, the one that costs least; None where there is none."""
        plan, base = self._plan(x), self._base
        if plan is None:
            return None
        given = x.to(plan.dtype), base.weight, base.bias
        if plan.merges:
            return MergedLinear.apply(*given, plan.change, *plan.factors)  # type: ignore[no-any-return]
        if not isinstance(plan.change, LowRank):
            return None
        low = (self._copies.of(factor, plan.dtype) for factor in plan.factors)
        return LowRankLinear.apply(*given, *low, plan.change.scale)  # type: ignore[no-any-return]

    def _plan(self, x: Tensor) -> _Plan | None:
        """How the layer and its change would be computed; None where only by the hook."""
        layer, base, dtype = self._layer, self._base, compute_dtype(x)
        if type(base) is not nn.Linear:  # its weight is stored in 8 bits since
            return None
        if torch.compiler.is_compiling():  # a compiler sees to casts and memory itself
            return None
        drops = layer.training and layer.dropouts != Dropout()
        if drops or base.weight.requires_grad or base.weight.dtype != dtype:
            return None
        multiplier = self._multiplier()
        change, factors = layer.change(multiplier), layer.change_factors()
        assert change is not None, "only layers with one are joined"
        if layer.dora_scale is not None:
            if multiplier != 1.0 or not isinstance(change, LowRank):
                return None
            change = Decomposed(change, by_output=layer.dora_axis == "output")
            factors = layer.dora_scale, *factors
        rows = x.numel() // x.shape[-1]
        pays = not change.is_thin or merging_pays(rows, base.in_features, base.out_features)
        return _Plan(change, factors, dtype, merges=pays and dtype == torch.float32)

    def remove(self) -> None:
        """Give the layer its own forward back."""
        vars(self._base).pop("forward", None)


def _is_hooked(base: nn.Module) -> bool:
    hooks = (base._forward_hooks, base._forward_pre_hooks)
    return any((*hooks, base._backward_hooks, base._backward_pre_hooks))
