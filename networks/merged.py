"""A frozen Linear layer with an adapter's change in its weight, as one operation in float32.

One product forward and one for the input's gradient, as without the adapter. The changed weight is
made in each pass and let go: kept for the backward pass are the input and what others keep too. In
half precision W + dW would lose most of dW; there the change is computed beside W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.changes import Change, Given


class MergedLinear(torch.autograd.Function):
    """`x W'^T + b` with gradients of x and the factors of W'.

    x (..., in), W (out, in), all of float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, change: Change, *factors: Tensor
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output = F.linear(rows, change.weight(weight, *factors), bias)
        ctx.change, ctx.shape = change, x.shape
        kept = (output, bias) if change.needs_output else (None, None)
        ctx.save_for_backward(rows, weight, *kept, *factors)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, output, bias, *factors = ctx.saved_tensors
        if not any(ctx.needs_input_grad[4:]):  # a network that rests
            grad_x = grad @ ctx.change.weight(weight, *factors)
            return grad_x, None, None, None, *(None for _ in factors)
        if bias is not None:
            output = output - bias
        grad = grad.reshape(-1, grad.shape[-1])
        given = Given(weight, rows, output, grad, wants_rows=ctx.needs_input_grad[0])
        grad_x, found = ctx.change.backward(given, *factors)
        if not given.wants_rows or grad_x is None:
            return None, None, None, None, *found
        return grad_x.view(ctx.shape), None, None, None, *found
