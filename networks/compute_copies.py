"""Copies of float32 parameters in the dtype that a model computes in, all of a network at once.

A cast for each parameter in each pass is what mixed precision costs in kernel launches; here it is
one launch for all of them before the forward pass, and one for the gradients behind the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ALIGNED = 64  # elements: the kernels of matrix products want rows that begin at 16 bytes


class ComputeCopies:
    """Gives parameters in another dtype; gradients of the copies go to the parameters.

    Args:
        parameters: of float32, as they are at each forward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._places = {id(parameter): n for n, parameter in enumerate(self._parameters)}
        self._made: tuple[Tensor, ...] = ()
        self._versions: list[int] = []
        self._state: tuple[Any, ...] = ()

    def of(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a parameter in a dtype: itself if it has it."""
        if parameter.dtype == dtype:
            return parameter
        tracks = torch.is_grad_enabled() and parameter.requires_grad
        state = (dtype, tracks, parameter.device)
        place = self._places[id(parameter)]
        if state != self._state or parameter._version != self._versions[place]:
            self._made = _make(self._parameters, dtype, self._forget, tracks=tracks)
            self._versions = [each._version for each in self._parameters]
            self._state = state
        return self._made[place]

    def _forget(self) -> None:
        """Drop the copies: their part of the graph has been used up by a backward pass."""
        self._made, self._state = (), ()


def _make(
    parameters: Sequence[Tensor], dtype: torch.dtype, used_up: Callable[[], None], *, tracks: bool
) -> tuple[Tensor, ...]:
    if tracks:
        return _Copies.apply(dtype, used_up, *parameters)  # type: ignore[no-any-return]
    with torch.no_grad():
        return tuple(_copied(parameters, dtype))


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, used_up: Callable[[], None], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.used_up = used_up
        ctx.set_materialize_grads(False)
        return tuple(_copied(parameters, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.used_up()
        given = [grad for grad in grads if grad is not None]
        copies = iter(_copied(given, torch.float32) if given else [])
        return None, None, *(None if grad is None else next(copies) for grad in grads)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in another dtype, in one piece of memory."""
    sizes = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in tensors]
    memory = torch.empty(sum(sizes), dtype=dtype, device=tensors[0].device)
    pieces = memory.split(sizes)
    copies = [p[: t.numel()].view(t.shape) for p, t in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return copies
