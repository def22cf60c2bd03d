"""Autocast and attention on the meta device as CUDA has them, so that memory can be estimated.

torch has neither there: its autocast knows no meta tensors, and attention falls back to the form
that keeps the whole matrix, which no card's kernels do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modules.mixed_precision import META_MODES

LOWER = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "prelu",
        "addmm",
        "addmv",
        "addr",
        "matmul",
        "einsum",
        "mm",
        "mv",
        "linear",
        "addbmm",
        "baddbmm",
        "bmm",
        "chain_matmul",
        "multi_dot",
        "scaled_dot_product_attention",
    ]
)
"""Functions that autocast computes in the lower precision (torch, ATen/autocast_mode.h)."""

FULL = frozenset(
    [
        "acos",
        "asin",
        "cosh",
        "erfinv",
        "exp",
        "expm1",
        "log",
        "log10",
        "log2",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sinh",
        "tan",
        "pow",
        "softplus",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "cosine_similarity",
        "poisson_nll_loss",
        "cosine_embedding_loss",
        "nll_loss",
        "hinge_embedding_loss",
        "kl_div",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "mse_loss",
        "margin_ranking_loss",
        "soft_margin_loss",
        "triplet_margin_loss",
        "multi_margin_loss",
        "binary_cross_entropy_with_logits",
        "dist",
        "pdist",
        "cdist",
        "renorm",
        "logsumexp",
        "interpolate",
        "norm",
    ]
)
"""Functions that it computes in float32."""

FULL_OUTPUT = frozenset(["prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"])
"""Functions whose result it makes float32, where no other is asked for."""

_OPERATORS = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow"}
_HALVES = (torch.float16, torch.bfloat16)


class MetaAutocast(TorchFunctionMode):
    """Casts as CUDA's autocast to `dtype` would; with None only attention is another.

    Copies of trained float32 weights are kept as there, until `forget`.
    """

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype
        self.is_suspended = False
        self._keeps = True
        self._copies: dict[int, Tensor] = {}

    def __enter__(self) -> MetaAutocast:
        META_MODES.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        META_MODES.remove(self)
        self.forget()
        super().__exit__(*error)

    def forget(self) -> None:
        """Let the copies of weights go, as when autocast is left, and keep none from now on."""
        self._copies.clear()
        self._keeps = False

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        name = _OPERATORS.get(name, name)
        if self.dtype is not None and not self.is_suspended:
            args, kwargs = self._cast(name, args, kwargs)
        if name == "scaled_dot_product_attention" and args and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return function(*args, **kwargs)

    def _cast(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if name in LOWER:
            return self._all_to(self.dtype, args), self._all_to(self.dtype, kwargs)
        if name in FULL:
            return self._all_to(torch.float32, args), self._all_to(torch.float32, kwargs)
        if name in FULL_OUTPUT and kwargs.get("dtype") is None and _is_half(args[0]):
            return args, {**kwargs, "dtype": torch.float32}
        return args, kwargs

    def _all_to(self, dtype: Any, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {key: self._all_to(dtype, value) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return type(values)([self._all_to(dtype, value) for value in values])
        is_cast = isinstance(values, Tensor) and values.dtype in (torch.float32, *_HALVES)
        if not is_cast or values.dtype == dtype:
            return values
        keeps = self._keeps and values.is_leaf and values.requires_grad and dtype in _HALVES
        if not keeps:
            return values.to(dtype)
        if id(values) not in self._copies:
            self._copies[id(values)] = values.to(dtype)
        return self._copies[id(values)]


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _HALVES


class _Attention(torch.autograd.Function):
    """What fused kernels allocate (Dao et al. 2022, arXiv:2205.14135): no attention matrix.

    Queries, keys, values, output and the logarithm of each row's sum are kept for the backward
    pass, which adds up the queries' gradient in float32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        # As the kernels lay it out, so that joining the heads copies nothing.
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        query, key, value, _, sums = ctx.saved_tensors
        summed = query.new_empty(query.shape, dtype=torch.float32)
        terms = torch.empty_like(sums)
        gradients = tuple(torch.empty_like(each) for each in (query, key, value))
        del summed, terms
        return gradients
