"""The change of a weight that a file's tensors describe, written out as readers compute it.

Each is the formula of its paper on whole matrices, in float32; training computes with the factors
one after another (`networks/lora.py`, `loha.py`, `lokr.py`, `dora.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def direction_of(tensors: Tensors) -> Callable[[Tensors], Tensor] | None:
    """The formula for a layer's tensors, by their names; None if they are of no known kind."""
    for mark, formula in (("lora_down", lora), ("hada_w1_a", loha), ("lokr_w", lokr)):
        if any(name.startswith(mark) for name in tensors):
            return formula
    return None


def lora(tensors: Tensors) -> Tensor:
    """up @ down * alpha / rank (Hu et al. 2021, arXiv:2106.09685)."""
    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
    product = torch.einsum("or,r...->o...", up.flatten(1), down)
    return product.mul_(_scale(tensors, down.shape[0]))


def loha(tensors: Tensors) -> Tensor:
    """(w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank (arXiv:2108.06098), (out, in * k * k)."""
    first = torch.einsum("or,ri->oi", tensors["hada_w1_a"], tensors["hada_w1_b"])
    second = torch.einsum("or,ri->oi", tensors["hada_w2_a"], tensors["hada_w2_b"])
    return first.mul_(second).mul_(_scale(tensors, tensors["hada_w1_b"].shape[0]))


def lokr(tensors: Tensors) -> Tensor:
    """kron(w1, w2) * alpha / rank, of two whole factors without a scale (arXiv:2212.10650).

    A w2 of two factors has its kernel in its columns, (out, in * k * k).
    """
    ranks = [tensors[name].shape[1] for name in ("lokr_w1_a", "lokr_w2_a") if name in tensors]
    first, second = _factor(tensors, "lokr_w1"), _factor(tensors, "lokr_w2")
    ones = [1 for _ in second.shape[2:]]
    product = torch.kron(first.reshape(*first.shape, *ones).contiguous(), second.contiguous())
    return product.mul_(_scale(tensors, ranks[0])) if ranks else product


def decomposed(weight: Tensor, direction: Tensor, magnitudes: Tensor) -> Tensor:
    """m * V / ||V||, V = W + dW: the whole weight of a DoRA (arXiv:2402.09353).

    `magnitudes` are (out, 1[, 1, 1]), and the norm runs over each row, or (1, in[, 1, 1]).
    """
    whole = weight + direction
    return whole / norms_like(magnitudes, whole) * magnitudes


def norms_like(magnitudes: Tensor, whole: Tensor) -> Tensor:
    """||V|| in the shape of the magnitudes, nowhere 0."""
    own = [dim for dim in range(whole.dim()) if magnitudes.shape[dim] != whole.shape[dim]]
    norms = whole.square().sum(dim=own, keepdim=True).sqrt() if own else whole.abs()
    return norms.clamp(min=torch.finfo(norms.dtype).eps)


def _factor(tensors: Tensors, name: str) -> Tensor:
    if name in tensors:
        return tensors[name]
    return torch.einsum("or,ri->oi", tensors[f"{name}_a"], tensors[f"{name}_b"])


def _scale(tensors: Tensors, rank: int) -> float:
    return float(tensors["alpha"]) / rank
