"""How many bytes an optimizer keeps for what it trains, without training anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from modules.live_memory import LiveMemory, bytes_of
from modules.optimizer import ParameterGroup
from modules.optimizer_class import make_optimizer

_BLOCK = 256  # numbers that share a scale in 8-bit states
_SMALLEST = 4096  # numbers of a tensor whose state is 8-bit
_PRIMES = (2, 3, 5, 7, 11)
_ONE_STATE = ("lion", "sgd", "lars", "rmsprop", "adagrad", "momentum")


def measure_optimizer(
    path: str, args: Mapping[str, Any], parameters: Sequence[Parameter]
) -> tuple[int, int]:
    """Bytes of the state of parameters on `meta`, and what else a step allocates on its way.

    The optimizer makes a step on `meta`. One that needs values makes it with small tensors, whose
    state tells which of the sizes it has.

    Raises:
        ValueError: it can't do that either.
    """
    name = path.rpartition(".")[2].lower()
    if "8bit" in name or "4bit" in name:  # needs a card; states as its documentation has them
        return sum(_quantized(p.numel(), name) for p in parameters), 0
    try:
        return _on_meta(path, args, parameters)
    except Exception:  # of whatever package
        return _by_example(path, args, parameters), 0


def _on_meta(
    path: str, args: Mapping[str, Any], parameters: Sequence[Parameter]
) -> tuple[int, int]:
    optimizer = _make(path, args, parameters)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    try:
        with LiveMemory() as live:
            live.ignore([*parameters, *(p.grad for p in parameters if p.grad is not None)])
            optimizer.step()
        state = bytes_of(t for t in _tensors(optimizer) if t.is_meta)
        return state, max(0, live.peak.at(live.images) - state)
    finally:
        for parameter in parameters:
            parameter.grad = None


def _make(path: str, args: Mapping[str, Any], parameters: Sequence[Parameter]) -> Any:
    optimizer = make_optimizer(path, args, [ParameterGroup("all", list(parameters), 1e-4)])
    if hasattr(optimizer, "train"):  # schedule-free ones have modes
        optimizer.train()
    return optimizer


def _by_example(path: str, args: Mapping[str, Any], parameters: Sequence[Parameter]) -> int:
    """Bytes by an optimizer of small tensors, each of whose sides has a prime of its own."""
    by_shape: dict[tuple[int, ...], int] = {}
    for parameter in parameters:
        shape = tuple(parameter.shape)
        by_shape[shape] = by_shape.get(shape, 0) + 1
    total = 0
    for shape, count in by_shape.items():
        sides = dict(zip(_PRIMES, shape, strict=False))
        example = Parameter(torch.rand(list(sides)))
        example.grad = torch.rand_like(example)
        try:
            optimizer = _make(path, args, [example])
            optimizer.step()
        except Exception as error:
            raise ValueError(f"{path}: {error}") from error
        own = [t for t in _tensors(optimizer) if t is not example]
        total += count * sum(t.element_size() * _real_size(t, sides) for t in own)
    return total


def _real_size(tensor: Tensor, sides: Mapping[int, int]) -> int:
    """Numbers of a state tensor where the example's sides are the real ones."""
    own = math.prod(sides)
    if tensor.numel() == own:
        return math.prod(sides.values())
    return math.prod(sides.get(side, side) for side in tensor.shape)


def _tensors(optimizer: Any) -> list[Tensor]:
    found, stack = [], list(optimizer.state.values())
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value
    return found


def _quantized(numbers: int, name: str) -> int:
    """Bytes of a tensor's state: a byte each and a float32 for each block, or float32."""
    states = 1 if any(kind in name for kind in _ONE_STATE) else 2
    if numbers < _SMALLEST:
        return states * numbers * 4
    each = 0.5 if "4bit" in name else 1
    return states * math.ceil(numbers * each + 4 * math.ceil(numbers / _BLOCK))
