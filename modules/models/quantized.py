"""Frozen layers whose weights are stored in 8 bits, and computed with as ever.

The weight is made again where it is needed, in the forward and in the backward pass, and is let go
at once: nothing of its size is kept between them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from modules.mixed_precision import compute_dtype
from modules.models.weight_storage import STORAGES, WeightStorage

logger = logging.getLogger(__name__)

_LEAST_CHANNELS = 16
"""Layers with fewer inputs or outputs, as those to and from latents, take no room and stay."""
_MIB = 2**20


def quantize_frozen(module: nn.Module, name: str, *, device: torch.device) -> int:
    """Store the Linear and convolution weights of a frozen module in 8 bits; returns how many.

    Each weight is moved to `device` by itself and encoded there. What is stored already stays.
    """
    assert not any(p.requires_grad for p in module.parameters()), "trained weights are not rounded"
    layers: list[Any] = [layer for layer in module.modules() if _is_fit(layer)]
    before = sum(layer.weight.nbytes for layer in layers)
    for layer in layers:
        # In place, as torch's parametrizations do it: hooks and references to the layer stay.
        layer.__class__ = QuantizedLinear if type(layer) is nn.Linear else QuantizedConv2d
        layer._take(STORAGES[name], device)
    after = sum(stored.nbytes for layer in layers for stored in (layer.codes, layer.scale))
    if layers:
        logger.info(
            "model.quantize: %d layers of %s in %s, %.1f MiB where float32 takes %.1f",
            *(len(layers), type(module).__name__, name, after / _MIB, before / _MIB),
        )
    return len(layers)


def bytes_spared(module: nn.Module | None) -> int:
    """Bytes that a module's frozen weights would leave free in int8."""
    layers: Any = () if module is None else filter(_is_fit, module.modules())
    weights = [layer.weight for layer in layers if not layer.weight.requires_grad]
    return sum(w.nbytes - w.numel() - 4 * len(w) for w in weights)


def is_quantized(module: nn.Module) -> bool:
    """Whether weights of a module are stored in 8 bits."""
    return any(isinstance(part, QuantizedLayer) for part in module.modules())


def plain_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a module in the dtype that it computes in: not those stored in 8 bits."""
    own = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, QuantizedLayer)
        for parameter in (part.codes, part.scale)
    }
    return (parameter for parameter in module.parameters() if id(parameter) not in own)


class QuantizedLayer(nn.Module):
    """What both kinds of layers share: the stored weight, which changes of dtype pass by."""

    storage: WeightStorage
    codes: nn.Parameter  # a parameter, since buffers are sent to all processes in each step
    scale: nn.Parameter
    shape: torch.Size
    dtype: torch.dtype  # that a weight which is asked for has

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with, made anew at each call."""
        return self.storage.decode(self.codes, self.scale, self.shape, self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """What the layer makes of `x`, without the bias."""
        raise TypeError(f"{type(self).__name__} has no product")

    @torch.no_grad()
    def _take(self, storage: WeightStorage, device: torch.device) -> None:
        """Store the weight that the layer has had."""
        weight = self._parameters.pop("weight")
        assert weight is not None
        self.storage, self.shape, self.dtype = storage, weight.shape, weight.dtype
        codes, scale = storage.encode(weight.detach().to(device))
        self.codes, self.scale = _parameter(codes), _parameter(scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow a module's move to another device, and note its dtype."""
        codes, scale = self.codes, self.scale
        del self.codes, self.scale
        try:
            super()._apply(fn, recurse)
            given = fn(torch.empty(0, dtype=self.dtype, device=codes.device))
            self.dtype = given.dtype
            if given.device != codes.device:
                codes, scale = (_parameter(held.to(given.device)) for held in (codes, scale))
        finally:
            self.codes, self.scale = codes, scale
        return self


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[override]
    """A Linear layer with a stored weight."""

    def forward(self, x: Tensor) -> Tensor:
        return _LinearProduct.apply(x, self.bias, self, compute_dtype(x))  # type: ignore[no-any-return]

    def product(self, x: Tensor) -> Tensor:
        return _LinearProduct.apply(x, None, self, compute_dtype(x))  # type: ignore[no-any-return]


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[override]
    """A convolution with a stored weight."""

    def forward(self, x: Tensor) -> Tensor:
        return _ConvProduct.apply(x, self.bias, self, compute_dtype(x))  # type: ignore[no-any-return]

    def product(self, x: Tensor) -> Tensor:
        return _ConvProduct.apply(x, None, self, compute_dtype(x))  # type: ignore[no-any-return]

    def numbers(self) -> tuple[Any, ...]:
        """Stride, padding, dilation and groups."""
        return self.stride, self.padding, self.dilation, self.groups


class _LinearProduct(torch.autograd.Function):
    """`x W^T + b`, which keeps nothing for the gradient of x but what is stored anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLinear, dtype: torch.dtype
    ) -> Tensor:
        _keep(ctx, x, layer, dtype)
        weight = layer.storage.decode(layer.codes, layer.scale, layer.shape, dtype)
        return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (grad @ _kept(ctx)).to(ctx.x_dtype), None, None, None


class _ConvProduct(torch.autograd.Function):
    """`conv2d(x, W) + b`, likewise."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedConv2d, dtype: torch.dtype
    ) -> Tensor:
        _keep(ctx, x, layer, dtype)
        ctx.x_shape, ctx.numbers = x.shape, layer.numbers()
        weight = layer.storage.decode(layer.codes, layer.scale, layer.shape, dtype)
        bias = None if bias is None else bias.to(dtype)
        return F.conv2d(x.to(dtype), weight, bias, *ctx.numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad_x = conv2d_input(ctx.x_shape, _kept(ctx), grad, *ctx.numbers)
        return grad_x.to(ctx.x_dtype), None, None, None


def _keep(ctx: Any, x: Tensor, layer: QuantizedLayer, dtype: torch.dtype) -> None:
    ctx.save_for_backward(layer.codes, layer.scale)
    ctx.storage, ctx.shape, ctx.dtype, ctx.x_dtype = layer.storage, layer.shape, dtype, x.dtype


def _kept(ctx: Any) -> Tensor:
    codes, scale = ctx.saved_tensors
    return ctx.storage.decode(codes, scale, ctx.shape, ctx.dtype)  # type: ignore[no-any-return]


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _is_fit(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return min(layer.in_features, layer.out_features) >= _LEAST_CHANNELS
    if type(layer) is not nn.Conv2d:
        return False
    is_plain = layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
    return is_plain and min(layer.in_channels, layer.out_channels) >= _LEAST_CHANNELS
