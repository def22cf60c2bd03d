"""Frozen Linear layers and their LoRA as one operation, with a backward pass of its own.

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


class LowRankLinears(torch.autograd.Function):
    """Several of them with one input, as queries, keys and values have: one product with all downs.

    Each layer is given by five values: weight, bias, down, up, scale. The input's gradient is
    summed up in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
        weights, biases, each_down, ups, scales = (layers[n::5] for n in range(5))
        rows = x.reshape(-1, x.shape[-1])
        downs, ranks = torch.cat(each_down), [len(down) for down in each_down]
        low = rows @ downs.t()
        outputs = [
            F.linear(rows, weight, bias).addmm_(own, up.t(), alpha=scale)
            for weight, bias, own, up, scale in zip(
                weights, biases, low.split(ranks, dim=1), ups, scales, strict=True
            )
        ]
        ctx.save_for_backward(rows, low, downs, *weights, *ups)
        ctx.scales, ctx.ranks, ctx.shape = scales, ranks, x.shape
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, downs, *others = ctx.saved_tensors
        weights, ups = others[: len(grads)], others[len(grads) :]
        each = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_low, grad_ups = torch.empty_like(low), []
        own = low.split(ctx.ranks, dim=1), grad_low.split(ctx.ranks, dim=1)
        for grad, up, scale, low_of, grad_of in zip(each, ups, ctx.scales, *own, strict=True):
            # With beta 0 the first argument is not read: it lends its shape.
            torch.addmm(grad_of, grad, up, beta=0, alpha=scale, out=grad_of)
            grad_ups.append(torch.addmm(up, grad.t(), low_of, beta=0, alpha=scale))
        grad_downs = (grad_low.t() @ rows).split(ctx.ranks)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_low @ downs
            for grad, weight in zip(each, weights, strict=True):
                grad_x.addmm_(grad, weight)
            grad_x = grad_x.view(ctx.shape)
        found = zip(grad_downs, grad_ups, strict=True)
        return grad_x, *(g for down, up in found for g in (None, None, down, up, None))
