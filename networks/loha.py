"""LoHa: the elementwise product of two low-rank matrices, of rank up to rank squared.

dW = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), `_a` (out, rank), `_b` (rank, in * k * k); from
FedPara (Hyeon-Woo et al. 2021, arXiv:2108.06098). Key names and initialisation are those of
KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from networks.base import Adapter
from networks.changes import Hadamard
from networks.dropout import drop_rows
from networks.layer import AdapterLayer, kernel_of, operation_of, sizes_of


class LoHaLayer(AdapterLayer):
    """The layer's own operation with dW as its weight; `w2_a` starts at zero."""

    scaled_factors: ClassVar = ("hada_w1_a",)

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__(base, rank=rank, alpha=alpha)
        inputs, outputs = sizes_of(base)
        self.shape = (outputs, inputs, *kernel_of(base))
        self._operation = operation_of(base)
        columns = math.prod(self.shape[1:])
        self.hada_w1_a = nn.Parameter(torch.randn(outputs, rank) * 0.1)
        self.hada_w1_b = nn.Parameter(torch.randn(rank, columns))
        self.hada_w2_a = nn.Parameter(torch.zeros(outputs, rank))
        self.hada_w2_b = nn.Parameter(torch.randn(rank, columns))

    def forward(self, x: Tensor) -> Tensor:
        addition = self._operation(x, self._delta().to(x.dtype))
        if self.training and self.dropouts.rank_dropout:
            addition = drop_rows(addition, self.dropouts.rank_dropout)
        return addition

    def change(self, multiplier: float) -> Hadamard | None:
        return Hadamard(self.scale * multiplier) if len(self.shape) == 2 else None

    def change_factors(self) -> tuple[Tensor, ...]:
        return self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b

    def delta_weight(self) -> Tensor:
        return self._delta().float()

    def _delta(self) -> Tensor:
        factors = self.change_factors()
        with torch.autocast(self.hada_w1_a.device.type, enabled=False):  # products in float32
            return _HadamardProduct.apply(*factors, self.scale).view(self.shape)

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        return tensors["hada_w1_b"].shape[0]


class LoHa(Adapter):
    """Hadamard-product adapters beside Linear and convolution layers."""

    layer_class: ClassVar = LoHaLayer
    algorithm: ClassVar = "loha"


class _HadamardProduct(torch.autograd.Function):
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b); both products are computed again in the backward pass.

    Kept for it are the four factors only, not two matrices of the weight's size.
    """

    @staticmethod
    def forward(ctx: Any, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float):
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        ctx.scale = scale
        return (w1_a @ w1_b) * (w2_a @ w2_b) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        gradient = gradients[0] * ctx.scale
        first = gradient * (w2_a @ w2_b)
        second = gradient * (w1_a @ w1_b)
        return first @ w1_b.T, w1_a.T @ first, second @ w2_b.T, w2_a.T @ second, None
