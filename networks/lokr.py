"""LoKr: the Kronecker product of a small and a large matrix, each whole or of low rank.

dW = alpha / rank * kron(w1, w2), w1 (i, j), w2 (k, n[, h, w]), out = i * k, in = j * n. From KronA
(Edalati et al. 2022, arXiv:2212.10650); key names, initialisation, and when a factor is whole are
those of KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import Adapter
from networks.changes import Kronecker
from networks.dropout import drop_rows
from networks.layer import AdapterLayer, kernel_of, operation_of, sizes_of

logger = logging.getLogger(__name__)

_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_ZERO = ("lokr_w2", "lokr_w2_b")  # where a fresh layer is zero


class LoKrLayer(AdapterLayer):
    """Applies the factors one after another, the Kronecker product is not built.

    w2 is two factors of low rank where that is smaller, with `decompose_both` w1 too. If both are
    whole, there is no rank, and the scale is 1.
    """

    scaled_factors: ClassVar = ("lokr_w1", "lokr_w1_a")

    lokr_w1: nn.Parameter | None
    lokr_w1_a: nn.Parameter
    lokr_w1_b: nn.Parameter
    lokr_w2: nn.Parameter | None
    lokr_w2_a: nn.Parameter | None
    lokr_w2_b: nn.Parameter

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        alpha: float,
        factor: int = 8,
        decompose_both: bool = False,
    ):
        super().__init__(base, rank=rank, alpha=alpha)
        inputs, outputs = sizes_of(base)
        self._kernel = kernel_of(base)
        self._operation = operation_of(base)
        (i, k), (j, n) = factorize(outputs, factor), factorize(inputs, factor)
        shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (i, j), "lokr_w2": (k, n, *self._kernel)}
        if decompose_both and rank < max(i, j) / 2:
            del shapes["lokr_w1"]
            shapes |= {"lokr_w1_a": (i, rank), "lokr_w1_b": (rank, j)}
        if rank < max(k, n) / 2:
            del shapes["lokr_w2"]
            shapes |= {"lokr_w2_a": (k, rank), "lokr_w2_b": (rank, n * math.prod(self._kernel))}
        self._low_rank_scale = self.scale
        self._make_factors(shapes)

    def forward(self, x: Tensor) -> Tensor:
        first = self._first() * self.scale  # (i, j)
        columns = first.shape[1]
        if self._kernel:
            batch = len(x)
            parts = x.unflatten(1, (columns, -1)).flatten(0, 1)  # (B * j, n, h, w)
            low = self._operation(parts, self._second_in())  # (B * j, rank or k, h', w')
            low = low.unflatten(0, (batch, columns)).movedim(1, -1)
            mixed = F.linear(low, first).movedim(-1, 1)  # (B, i, rank or k, h', w')
            if self.lokr_w2_a is not None:
                high = F.conv2d(mixed.flatten(0, 1), self.lokr_w2_a[..., None, None])
                mixed = high.unflatten(0, (batch, -1))
            addition = mixed.flatten(1, 2)
        else:
            low = F.linear(x.unflatten(-1, (columns, -1)), self._second_in())  # (..., j, rank or k)
            mixed = F.linear(low.mT, first).mT  # (..., i, rank or k)
            if self.lokr_w2_a is not None:
                mixed = F.linear(mixed, self.lokr_w2_a)
            addition = mixed.flatten(-2)
        if self.training and self.dropouts.rank_dropout:
            addition = drop_rows(addition, self.dropouts.rank_dropout)
        return addition

    def change(self, multiplier: float) -> Kronecker | None:
        if self._kernel:
            return None
        wholes = self.lokr_w1 is not None, self.lokr_w2 is not None
        scale = self.scale * multiplier
        return Kronecker(scale, is_first_whole=wholes[0], is_second_whole=wholes[1])

    def change_factors(self) -> tuple[Tensor, ...]:
        first = (self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b)
        second = (self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b)
        return tuple(factor for factor in (*first, *second) if factor is not None)

    def delta_weight(self) -> Tensor:
        first = self._first().float() * self.scale
        second = self._second_in().float()
        if self.lokr_w2_a is not None:
            product = self.lokr_w2_a.float() @ second.flatten(1)
            second = product.view(-1, *second.shape[1:])
        return kron(first, second)

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        for name in ("lokr_w1_a", "lokr_w2_a"):
            if name in tensors:
                return tensors[name].shape[1]
        if not {"lokr_w1", "lokr_w2"} <= tensors.keys():
            raise KeyError("lokr_w1 and lokr_w2")
        return max(1, int(tensors["alpha"]))

    @classmethod
    def from_shapes(cls, base: nn.Module, tensors: Mapping[str, Tensor]) -> LoKrLayer:
        found = {name: tuple(tensors[name].shape) for name in _NAMES if name in tensors}
        rank, alpha = cls.rank_of(tensors), float(tensors["alpha"])
        with torch.device("meta"):
            layer = cls(base, rank=rank, alpha=alpha)
            layer._make_factors(found)
            shape = layer.delta_weight().shape
        assert isinstance(base.weight, Tensor)
        if shape != base.weight.shape:
            own = tuple(base.weight.shape)
            raise ValueError(f"it is for a weight of {tuple(shape)}, this one has {own}")
        return layer.to_empty(device="cpu")

    def _make_factors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the named factors, and these only; the first of w2 to be applied is zero."""
        for name in _NAMES:
            parameter = None
            if name in shapes:
                parameter = nn.Parameter(torch.zeros(shapes[name]))
                if name not in _ZERO:
                    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            self.register_parameter(name, parameter)
        self.is_whole = {"lokr_w1", "lokr_w2"} <= shapes.keys()
        self.scale = 1.0 if self.is_whole else self._low_rank_scale
        if self.is_whole:
            self.alpha.fill_(self.rank)

    def _first(self) -> Tensor:
        """w1, (i, j)."""
        return self.lokr_w1_a @ self.lokr_w1_b if self.lokr_w1 is None else self.lokr_w1

    def _second_in(self) -> Tensor:
        """w2, or its factor that is applied first, (k or rank, n[, h, w])."""
        if self.lokr_w2 is not None:
            return self.lokr_w2
        return self.lokr_w2_b.view(len(self.lokr_w2_b), -1, *self._kernel)


@dataclass(kw_only=True, eq=False, repr=False)
class LoKr(Adapter):
    """Kronecker-product adapters beside Linear and convolution layers.

    Args:
        factor: the size of the small matrix, usually 4 to 16; a small one trains more parameters.
        decompose_both: make the small matrix of two factors too, where the rank is small enough.
    """

    layer_class: ClassVar = LoKrLayer
    algorithm: ClassVar = "lokr"

    factor: int = 8
    decompose_both: bool = False

    def attach(self, model: Any) -> None:
        super().attach(model)
        layers = [layer for _, layer in self._named_layers() if isinstance(layer, LoKrLayer)]
        whole = [layer for layer in layers if layer.is_whole]
        if whole and (self.alpha is not None or self.rank_stabilized):
            logger.warning(
                "LoKr: %d of %d layers have whole matrices, since their rank is at least half the "
                "larger one's size; alpha and rank_stabilized have no effect there",
                len(whole),
                len(layers),
            )

    def _check(self) -> None:
        super()._check()
        if self.factor < 2:
            raise ValueError(f"factor: {self.factor} is not a size of 2 or more; usual is 4 to 16")

    def _new_layer(self, base: nn.Module, *, rank: int, alpha: float) -> LoKrLayer:
        return LoKrLayer(
            base,
            rank=rank,
            alpha=alpha,
            factor=self.factor,
            decompose_both=self.decompose_both,
        )

    def _arguments(self) -> dict[str, str]:
        own = {"factor": str(self.factor), "decompose_both": str(self.decompose_both)}
        return {**super()._arguments(), **own}


def factorize(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`, the smaller first.

    One is `factor` if that divides `size`; else the smaller is the largest divisor up to it.
    """
    if size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    divisors = [d for d in range(1, factor + 1) if size % d == 0 and d * d <= size]
    return divisors[-1], size // divisors[-1]


def kron(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product of (i, j) and (k, n[, h, w]): (i * k, j * n[, h, w])."""
    (i, j), (k, n), kernel = first.shape, second.shape[:2], second.shape[2:]
    ones = [1] * len(kernel)
    product = first.view(i, 1, j, 1, *ones) * second.reshape(1, k, 1, n, *kernel)
    return product.reshape(i * k, j * n, *kernel)
