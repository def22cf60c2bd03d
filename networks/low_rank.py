"""A frozen Linear layer and its LoRA as one operation, with a backward pass of its own.

Beside the base's own product a call costs two matrix products forward and four backward: the scale
is folded into them, the sums into their output. Saved for the backward pass are the input and what
has the rank's size; of the frozen weight nothing is computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRankLinear(torch.autograd.Function):
    """`x W^T + b + scale (x down^T) up^T`, with gradients of x, down and up.

    x (..., in), W (out, in), down (rank, in), up (out, rank), all of one dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.t()
        output = F.linear(rows, weight, bias).addmm_(low, up.t(), alpha=scale)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        grad_x = grad_down = grad_up = None
        if needs_x or needs_down:
            # With beta 0 the first argument is not read: it lends its shape.
            grad_low = torch.addmm(low, grad, up, beta=0, alpha=ctx.scale)
            if needs_down:
                grad_down = grad_low.t() @ rows
            if needs_x:
                grad_x = (grad @ weight).addmm_(grad_low, down).view(ctx.shape)
        if needs_up:
            grad_up = torch.addmm(up, grad.t(), low, beta=0, alpha=ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None
