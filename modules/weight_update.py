"""From gradients to weights: behind the backward pass, or within it, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from modules.fused_backward import Waiting
from modules.optimizer import clip_gradients, make_step
from modules.step_guard import StepGuard

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.trainer import Trainer

_TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class WeightUpdate:
    """Clips all gradients by their common norm, then lets the optimizer make one step."""

    is_within_backward = False
    """Whether weights change before the backward pass is over."""

    def __init__(
        self,
        optimizer: Any,
        accelerator: Accelerator,
        guard: StepGuard,
        parameters: Sequence[Parameter],
        *,
        max_grad_norm: float,
    ):
        self._optimizer = optimizer
        self._accelerator = accelerator
        self._guard = guard
        self._parameters = parameters
        self._max_grad_norm = max_grad_norm

    def watch(self, loss: Tensor, *, number: int) -> None:
        """Know of the loss (a number) of step `number` before its backward pass."""

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before, a number on the device.

        An optimizer that can divide them on its way does so in its step: a pass over them less.
        """
        most = 0.0 if self._guard.divides_itself else self._max_grad_norm
        return clip_gradients(self._accelerator, self._parameters, most)

    def make(self, *, loss: Tensor, norm: Tensor, number: int) -> None:
        """Make step `number`, unless loss or norm is not finite."""
        step = partial(make_step, self._optimizer, number=number)
        divisor = None
        if self._max_grad_norm and self._guard.divides_itself:
            divisor = ((norm.float() + _TINY) / self._max_grad_norm).clamp(min=1.0)
        self._guard.step(step, loss=loss, norm=norm, divisor=divisor)


class FusedBackward(WeightUpdate):
    """Steps weights as soon as a few gradients are there, and lets these go.

    So a small part of the gradients is in memory at a time in place of all (Lv et al. 2023,
    arXiv:2306.09782). No common norm is known then: nothing is clipped. A loss that is not finite
    changes nothing; a gradient that is not finite leaves its weight and those that come with it or
    behind it in the backward pass as they are.

    The optimizer must treat each weight by itself (`modules.fused_backward`).
    """

    is_within_backward = True

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._raw = getattr(self._optimizer, "optimizer", self._optimizer)
        self._groups = {
            id(parameter): number
            for number, group in enumerate(self._raw.param_groups)
            for parameter in group["params"]
        }
        self._number = 0
        self._is_bad = torch.zeros((), dtype=torch.bool, device=self._accelerator.device)
        self._norms: list[Tensor] = []
        self._waiting = Waiting(self._parameters, self._step)

    def watch(self, loss: Tensor, *, number: int) -> None:
        """Begin step `number` with this loss."""
        self._number, self._norms = number, []
        self._is_bad = ~torch.isfinite(loss.detach())

    def clip(self) -> Tensor:
        """Step what is left; return the norm of all gradients that there were."""
        self._waiting.finish()
        return torch.linalg.vector_norm(torch.stack(self._norms))

    def make(self, *, loss: Tensor, norm: Tensor, number: int) -> None:
        """Count the step, which is made already."""
        self._guard.count(self._is_bad)
        self._norms = []

    def _step(self, parameters: Sequence[Tensor]) -> None:
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
        self._norms += [norm.float() for norm in norms]
        self._is_bad = self._is_bad | ~torch.isfinite(torch.stack(norms).sum())
        every = self._raw.param_groups
        own: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            own.setdefault(self._groups[id(parameter)], []).append(parameter)
        self._raw.param_groups = [{**every[n], "params": some} for n, some in own.items()]
        try:
            step = partial(make_step, self._raw, number=self._number)
            self._guard.step_unless(self._is_bad, step)
        finally:
            self._raw.param_groups = every


def weight_update(run: Trainer) -> WeightUpdate:
    """The way from gradients to weights that a run takes."""
    return (FusedBackward if run.fused_backward else WeightUpdate)(
        *(run.optimizer, run.accelerator, run.guard),
        [parameter for group in run.groups for parameter in group.parameters],
        max_grad_norm=run.max_grad_norm,
    )
