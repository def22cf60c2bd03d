"""Steps of weights within the backward pass: whether a run can have them, and when they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from modules.component import build
from modules.sections import Config

_KEY = "optimizer.fused_backward"
_SHAPES = ((8, 4), (5,), (3, 8))
_STEPS = 3

_MOST_WAITING = 64 * 2**20  # bytes; an optimizer's call for each gradient would cost its host time
_SHARE_WAITING = 16


class Waiting:
    """Gathers gradients in a backward pass, and hands on what is there once it is enough.

    Then they are let go. At `finish` the rest is handed on.

    Args:
        parameters: whose gradients.
        step: is given parameters with gradients.
    """

    def __init__(self, parameters: Sequence[Tensor], step: Callable[[Sequence[Tensor]], None]):
        self._step = step
        self._most = most_waiting(parameters)
        self._waiting: list[Tensor] = []
        self._bytes = 0
        self.hooks = [p.register_post_accumulate_grad_hook(self._add) for p in parameters]

    def finish(self) -> None:
        """Hand on what waits."""
        if not self._waiting:
            return
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        self._step(waiting)
        for parameter in waiting:
            parameter.grad = None

    def _add(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._waiting.append(parameter)
        self._bytes += parameter.grad.nbytes
        if self._bytes >= self._most:
            self.finish()


def most_waiting(parameters: Sequence[Tensor]) -> int:
    """Bytes of gradients that are enough for a step: some MiB, of a small model a part of all."""
    return min(_MOST_WAITING, sum(p.nbytes for p in parameters) // _SHARE_WAITING)


def waiting_at_most(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Parameters, the largest ones, of which as many bytes of gradients may wait as ever do."""
    most, found, size = most_waiting(parameters), [], 0
    for parameter in sorted(parameters, key=lambda p: -p.nbytes):
        if size >= most:
            break
        found.append(parameter)
        size += parameter.nbytes
    return found


def fused_backward_faults(config: Config) -> list[str]:
    """What of a config needs all gradients at once, one line each."""
    train = config.train
    if not config.optimizer.fused_backward:
        return []
    faults = []
    if train.max_grad_norm:
        faults.append(
            f"train.max_grad_norm is {train.max_grad_norm:g}: with {_KEY} no common norm of the "
            "gradients is known, so they can't be clipped; write train.max_grad_norm: 0"
        )
    if train.gradient_accumulation_steps > 1:
        faults.append(
            f"{_KEY}: a step over several batches keeps all gradients; write "
            "train.gradient_accumulation_steps: 1"
        )
    if config.prior is not None:
        faults.append(
            f"{_KEY}: class images make a second batch of each step, which keeps all gradients; "
            "take out the section prior, or fused_backward"
        )
    if train.mixed_precision == "fp16":
        faults.append(
            f"{_KEY}: fp16 scales the loss and looks at all gradients before a step; write "
            "train.mixed_precision: bf16"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        faults.append(
            f"{_KEY}: several processes first average their gradients; launch one process, or "
            "take it out"
        )
    if not faults and not treats_weights_alone(config.optimizer.module, config.optimizer.args):
        faults.append(
            f"{_KEY}: {config.optimizer.module} makes another step for one weight than for all "
            "together; use torch.optim.AdamW, torch.optim.Adafactor or another that looks at each "
            "weight alone"
        )
    return faults


def treats_weights_alone(path: str, args: Mapping[str, Any]) -> bool:
    """Whether an optimizer makes the same steps, bit for bit, if it sees one weight at a time.

    Tried out with small weights; one that can't make a step here is believed to.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            together = _trained(path, args, one_at_a_time=False)
        except Exception:  # of whatever package; what is wrong with it is said elsewhere
            return True
        try:
            alone = _trained(path, args, one_at_a_time=True)
        except Exception:
            return False
    return all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def _trained(path: str, args: Mapping[str, Any], *, one_at_a_time: bool) -> list[Parameter]:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    weights = [Parameter(torch.randn(shape).to(device)) for shape in _SHAPES]
    gradients = [[torch.randn(shape).to(device) for shape in _SHAPES] for _ in range(_STEPS)]
    optimizer = build(path, args, [{"params": weights, "lr": 0.01}], lr=0.01)
    if hasattr(optimizer, "train"):
        optimizer.train()
    group = optimizer.param_groups[0]
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
            if one_at_a_time:
                alone = {**group, "params": [weight]}
                optimizer.param_groups = [alone]
                optimizer.step()
                if {**alone, "params": 0} != {**group, "params": 0}:
                    raise ValueError("it keeps in the group what is of all weights")
                weight.grad = None
        if not one_at_a_time:
            optimizer.step()
    return weights
