"""DoRA: an adapter's change apart in direction and magnitude (Liu et al. 2024, arXiv:2402.09353).

W' = m * V / ||V||, V = W + dW. The norm runs over the input of each output channel ("output": the
paper's code and LyCORIS), or over the output of each input channel ("input": what ComfyUI and
AUTOMATIC1111 compute). m, the `dora_scale`, starts as ||W||. Gradients do not pass through ||V||
(section 4.3 there): this costs little quality and saves a copy of all weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from networks.layer import AdapterLayer, operation_of

Axis = Literal["input", "output"]
AXES: tuple[Axis, ...] = ("input", "output")


def decompose(layer: AdapterLayer, weight: Tensor, axis: Axis) -> None:
    """Give a layer the magnitudes of the base's weight."""
    layer.dora_scale = nn.Parameter(magnitudes(weight.detach(), axis))
    layer.dora_axis = axis


def take_over(layer: AdapterLayer, dora_scale: Tensor, weight: Tensor) -> Tensor:
    """Give a layer the magnitudes of a file, and return them; their shape tells the axis.

    A vector is one of output channels.

    Raises:
        ValueError: it fits neither.
    """
    if dora_scale.dim() == 1:
        dora_scale = dora_scale.view(-1, *(1 for _ in weight.shape[1:]))
    fitting = [axis for axis in AXES if dora_scale.shape == _shape(weight, axis)]
    if not fitting:
        raise ValueError(
            f"dora_scale has shape {tuple(dora_scale.shape)}, which is no row and no column of a "
            f"weight of {tuple(weight.shape)}"
        )
    layer.dora_scale = nn.Parameter(dora_scale.clone())
    layer.dora_axis = fitting[0]
    return dora_scale


def magnitudes(weight: Tensor, axis: Axis) -> Tensor:
    """||W|| in float32: (out, 1[, 1, 1]) or (1, in[, 1, 1])."""
    others = [d for d in range(weight.dim()) if d != _kept(axis)]
    return torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)


def _shape(weight: Tensor, axis: Axis) -> tuple[int, ...]:
    """That of the magnitudes."""
    return tuple(size if d == _kept(axis) else 1 for d, size in enumerate(weight.shape))


def _kept(axis: Axis) -> int:
    """The dimension of a weight that has the channels."""
    return 1 if axis == "input" else 0


def decomposed_addition(
    layer: AdapterLayer, base: nn.Module, x: Tensor, output: Tensor, *, is_plain: bool = False
) -> Tensor:
    """What the base's output for `x` gets added, (W' - W) x, without building W'.

    `is_plain`: nothing but the base has made the output.

    With s = m / ||V||: W' x = s * (W x + dW x) for rows, W (s * x) + dW (s * x) for columns. A
    fresh one adds zero; in a base of another precision than it was made with, rounding errors.
    """
    weight = base.weight
    assert isinstance(weight, Tensor)
    scale = _scale(layer, weight).flatten()
    scale = scale.view(-1, 1, 1) if weight.dim() == 4 else scale
    if layer.dora_axis == "input":
        return _product(base, x * (scale - 1), weight) + layer(x * scale)
    if not is_plain and (len(base._forward_hooks) > 1 or "forward" in vars(base)):
        plain = _product(base, x, weight)
    elif base.bias is None:
        plain = output
    else:
        assert isinstance(base.bias, Tensor)
        plain = output - (base.bias.view(-1, 1, 1) if weight.dim() == 4 else base.bias)
    return plain * (scale - 1) + layer(x) * scale


def _product(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the base makes of `x` without its bias; one that stores its weight in 8 bits knows."""
    own = getattr(base, "product", None)
    return operation_of(base)(x, weight) if own is None else own(x)


def weight_change(layer: AdapterLayer, weight: Tensor) -> Tensor:
    """W' - W in float32, for a layer with and without magnitudes."""
    if layer.dora_scale is None:
        return layer.delta_weight()
    changed = weight.float() + layer.delta_weight()
    return changed * _scale(layer, weight) - weight.float()


def _scale(layer: AdapterLayer, weight: Tensor) -> Tensor:
    """m / ||V||, in the shape of the magnitudes."""
    assert layer.dora_scale is not None
    axis: Axis = "input" if layer.dora_axis == "input" else "output"
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        norms = magnitudes(weight.float() + layer.delta_weight(), axis)
        norms = norms.clamp(min=torch.finfo(norms.dtype).eps)
    return layer.dora_scale / norms
