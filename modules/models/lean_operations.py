"""Parts of a denoiser as single operations, which keep less for the backward pass.

What is cheap is computed there again: a normalization and its activation, in one pass over memory
each. Kept are what a part began with, and of the normalization a few numbers for each image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


class NormSiLUConv(torch.autograd.Function):
    """`conv2d(silu(group_norm(x)))`, of which `x` alone is kept; the convolution is 3x3 or so.

    x (B, C, h, w), gain and shift (C,), weight (out, C, k, k), bias (out,). Without a weight it is
    the normalization and SiLU. The convolution computes in `dtype`, the normalization in that of
    its weights, as under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        numbers: tuple[int, float, int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.numbers, ctx.dtype = numbers, dtype
        normed, mean, deviation = _normed(x, gain, shift, numbers)
        ctx.save_for_backward(x, gain, shift, weight, mean, deviation)
        if weight is None:
            return F.silu(normed, inplace=True)
        ctx.bias_shape = None if bias is None else list(bias.shape)
        ctx.bias_dtype = None if bias is None else bias.dtype
        active = F.silu(normed, inplace=True).to(dtype)
        own_bias = None if bias is None else bias.to(dtype)
        return F.conv2d(active, weight.to(dtype), own_bias, numbers[2], numbers[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, weight, mean, deviation = ctx.saved_tensors
        needs_x, needs_gain, needs_shift, needs_weight, needs_bias, _, _ = ctx.needs_input_grad
        normed, _, _ = _normed(x, gain, shift, ctx.numbers)
        grad_weight = grad_bias = None
        needs_normed = needs_x or needs_gain or needs_shift
        if weight is not None:
            # Where the weight rests, the convolution's input lends its shape alone.
            active = (F.silu(normed) if needs_weight else normed).to(ctx.dtype)
            stride, padding = ctx.numbers[2:]
            grad, grad_weight, grad_bias = _aten.convolution_backward(
                *(grad, active, weight.to(ctx.dtype), ctx.bias_shape),
                *([stride, stride], [padding, padding], [1, 1], False, [0, 0], 1),
                [needs_normed, needs_weight, needs_bias],
            )
            del active  # the memory of a step is largest in here
            grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
            grad_bias = None if grad_bias is None else grad_bias.to(ctx.bias_dtype)
        if not needs_normed:
            return None, None, None, grad_weight, grad_bias, None, None
        grad = _aten.silu_backward(grad.to(normed.dtype), normed)
        dtype = normed.dtype
        del normed
        batch, channels, *positions = x.shape
        grad_x, grad_gain, grad_shift = _aten.native_group_norm_backward(
            *(_laid_out(grad, x), _laid_out(x, x).to(dtype), mean, deviation, gain),
            *(batch, channels, positions[0] * positions[1], ctx.numbers[0]),
            [needs_x, needs_gain, needs_shift],
        )
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_gain, grad_shift, grad_weight, grad_bias, None, None


class GEGLULinear(torch.autograd.Function):
    """`linear(hidden * gelu(gate))` of a projection [hidden, gate], which alone is kept.

    projection (..., 2 inner), weight (out, inner), bias (out,); GEGLU is of Shazeer 2020,
    arXiv:2002.05202. Without a weight it is the product. The layer computes in `dtype`.
    """

    @staticmethod
    def forward(
        ctx: Any, projection: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(projection, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.dtype = dtype
        hidden, gate = projection.chunk(2, dim=-1)
        product = F.gelu(gate).mul_(hidden)
        if weight is None:
            return product
        own_bias = None if bias is None else bias.to(dtype)
        return F.linear(product.to(dtype), weight.to(dtype), own_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projection, weight = ctx.saved_tensors
        needs_projection, needs_weight, needs_bias, _ = ctx.needs_input_grad
        hidden, gate = projection.chunk(2, dim=-1)
        opened = F.gelu(gate)
        grad_weight = grad_bias = None
        if weight is not None:
            rows = grad.reshape(-1, grad.shape[-1])
            if needs_weight:
                product = (hidden * opened).to(ctx.dtype)
                grad_weight = rows.t() @ product.view(-1, product.shape[-1])
                grad_weight = grad_weight.to(weight.dtype)
                del product
            if needs_bias:
                grad_bias = rows.sum(0).to(ctx.bias_dtype)
            grad = (grad @ weight.to(ctx.dtype)).to(projection.dtype)
        if not needs_projection:
            return None, grad_weight, grad_bias, None
        inner = gate.shape[-1]
        grad_projection = torch.empty_like(projection)
        torch.mul(grad, opened, out=grad_projection[..., :inner])
        del opened
        _aten.gelu_backward.grad_input(
            grad.mul(hidden), gate, grad_input=grad_projection[..., inner:]
        )
        return grad_projection, grad_weight, grad_bias, None


def _normed(
    x: Tensor, gain: Tensor, shift: Tensor, numbers: tuple[int, float, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized tensor, its mean and reciprocal deviation of each group."""
    batch, channels, *positions = x.shape
    return torch.native_group_norm(
        _laid_out(x, x).to(gain.dtype), gain, shift,
        *(batch, channels, positions[0] * positions[1], *numbers[:2]),
    )  # fmt: skip


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor as kernels of the normalization read it: by pixels on a processor only."""
    by_pixels = (
        like.device.type == "cpu"
        and not like.is_contiguous()
        and like.is_contiguous(memory_format=torch.channels_last)
        and like.stride(0) >= like.stride(2) * like.shape[2]  # of one image it can be anything
    )
    return tensor.contiguous(
        memory_format=torch.channels_last if by_pixels else torch.contiguous_format
    )
