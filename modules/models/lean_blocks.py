"""Blocks of diffusers' denoisers that keep and do less, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.mixed_precision import compute_dtype
from modules.models.lean_operations import GEGLULinear, NormSiLUConv


def keep_less(denoiser: nn.Module) -> int:
    """Let residual, feed-forward and attention blocks keep or do less; returns how many do.

    Only blocks of exactly diffusers' classes, in the forms that Stable Diffusion has. A layer that
    is hooked, replaced or quantized computes by itself, and the rest of its block as one.
    """
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    count = 0
    for module in denoiser.modules():
        forward: Callable[..., Tensor] | None = None
        if type(module) is ResnetBlock2D and _is_plain_residual(module):
            forward = _residual
        elif type(module) is FeedForward and _is_plain_feed_forward(module):
            forward = _feed_forward
        elif type(module) is Attention and _is_plain_attention(module):
            forward = _attention
        if forward is not None:
            vars(module)["forward"] = MethodType(forward, module)
            count += 1
    return count


def _is_plain_residual(block: Any) -> bool:
    return (
        (block.upsample, block.downsample) == (None, None)
        and (block.time_emb_proj is None or block.time_embedding_norm == "default")
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _is_plain_feed_forward(block: Any) -> bool:
    from diffusers.models.activations import GEGLU

    kinds = [type(module) for module in block.net]
    return kinds[:2] == [GEGLU, nn.Dropout] and issubclass(kinds[2], nn.Linear)


def _is_plain_attention(block: Any) -> bool:
    norms = (block.group_norm, block.spatial_norm, block.norm_q, block.norm_k, block.norm_cross)
    scales = block.rescale_output_factor != 1 or block.residual_connection
    return not (any(norms) or scales)


def _residual(block: Any, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
    """Forward of diffusers' ResnetBlock2D."""
    if torch.compiler.is_compiling() or (block.training and block.dropout.p):
        return type(block).forward(block, input_tensor, temb)  # type: ignore[no-any-return]
    hidden = _norm_silu_conv(block.norm1, block.conv1, input_tensor)
    if block.time_emb_proj is not None and temb is not None:
        temb = temb if block.skip_time_act else F.silu(temb)
        hidden = hidden + block.time_emb_proj(temb)[:, :, None, None]
    hidden = _norm_silu_conv(block.norm2, block.conv2, hidden)
    if block.conv_shortcut is not None:
        input_tensor = block.conv_shortcut(input_tensor.contiguous())
    output = input_tensor + hidden
    return output if block.output_scale_factor == 1 else output / block.output_scale_factor


def _feed_forward(block: Any, hidden_states: Tensor) -> Tensor:
    """Forward of diffusers' FeedForward with a GEGLU."""
    gated, dropout, linear, *rest = block.net
    drops = block.training and any(m.p for m in (dropout, *rest))
    if torch.compiler.is_compiling() or drops or not _computes_alone(gated, type(gated)):
        return type(block).forward(block, hidden_states)  # type: ignore[no-any-return]
    projection = gated.proj(hidden_states)
    if not _computes_alone(linear, nn.Linear) or not linear.weight.requires_grad:
        return linear(GEGLULinear.apply(projection, None, None, projection.dtype))  # type: ignore[no-any-return]
    dtype = compute_dtype(projection)
    return GEGLULinear.apply(projection, linear.weight, linear.bias, dtype)  # type: ignore[no-any-return]


def _attention(
    block: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any
) -> Tensor:
    """Forward of diffusers' Attention with SDPA, which looks at no signature and divides by no 1.

    `hidden_states` (B, tokens, D), `encoder_hidden_states` (B, others, D').
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    given = any(value is not None for value in options.values())
    if given or type(block.processor) is not AttnProcessor2_0 or hidden_states.dim() != 3:
        options["encoder_hidden_states"] = encoder_hidden_states
        return type(block).forward(block, hidden_states, **options)  # type: ignore[no-any-return]
    if encoder_hidden_states is None:
        query, key, value = _project((block.to_q, block.to_k, block.to_v), hidden_states)
    else:
        query = block.to_q(hidden_states)
        key, value = _project((block.to_k, block.to_v), encoder_hidden_states)
    query_heads, key_heads, value_heads = (
        each.view(len(each), -1, block.heads, each.shape[-1] // block.heads).transpose(1, 2)
        for each in (query, key, value)
    )
    heads = F.scaled_dot_product_attention(query_heads, key_heads, value_heads)
    joined = heads.transpose(1, 2).reshape(query.shape)
    return block.to_out[1](block.to_out[0](joined))  # type: ignore[no-any-return]


def _project(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """What layers make of one input: together, where an adapter has taken their place and can."""
    together = getattr(vars(layers[0]).get("forward"), "together", None)
    outputs = None if together is None else together(layers, x)
    return [layer(x) for layer in layers] if outputs is None else outputs


def _norm_silu_conv(norm: Any, conv: Any, x: Tensor) -> Tensor:
    if not _computes_alone(norm, nn.GroupNorm):
        return conv(F.silu(norm(x)))  # type: ignore[no-any-return]
    dtype, groups, eps = compute_dtype(x), norm.num_groups, norm.eps
    if not _computes_alone(conv, nn.Conv2d) or not _is_square(conv):
        numbers = (groups, eps, 1, 0)
        return conv(NormSiLUConv.apply(x, norm.weight, norm.bias, None, None, numbers, dtype))  # type: ignore[no-any-return]
    numbers = (groups, eps, conv.stride[0], conv.padding[0])
    given = norm.weight, norm.bias, conv.weight, conv.bias
    return NormSiLUConv.apply(x, *given, numbers, dtype)  # type: ignore[no-any-return]


def _computes_alone(module: nn.Module, kind: type) -> bool:
    """Whether a layer is of a kind, and nothing but its own forward would be called."""
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def _is_square(conv: Any) -> bool:
    """Whether a convolution's stride and padding are one number each, and the rest is plain."""
    pairs = (conv.stride, conv.padding)
    return (
        all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in pairs)
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and conv.weight.is_floating_point()
    )
