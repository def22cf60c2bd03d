"""Dropout of adapters: of values, of ranks, of whole layers. In training only.

The masks come from torch's own generators, which gradient checkpointing sets back: the backward
pass computes with the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The probabilities of an adapter's layers."""

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0

    def check(self) -> None:
        """Check that all are probabilities.

        Raises:
            ValueError: one is not, or leaves nothing.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{field.name}: {value} is not a probability from 0 to below 1")

    def keeps_layer(self) -> bool:
        """Whether a layer takes part in this call; drawn on the CPU, so that nothing waits."""
        return torch.rand(()).item() >= self.module_dropout


def keep_mask(size: Sequence[int], probability: float, like: Tensor) -> Tensor:
    """Zeros with the given probability, else such a number that the mean is 1."""
    kept = torch.rand(tuple(size), device=like.device) >= probability
    return kept.to(like.dtype) / (1 - probability)


def drop_ranks(low: Tensor, probability: float) -> Tensor:
    """Drop ranks of the low-rank activations, others in each sample, as kohya-ss/sd-scripts does.

    `low` is (B, rank), (B, tokens, rank) or (B, rank, h, w).
    """
    size = [len(low), *(1 for _ in low.shape[1:])]
    channels = 1 if low.dim() == 4 else -1
    size[channels] = low.shape[channels]
    return low * keep_mask(size, probability, low)


def drop_rows(addition: Tensor, probability: float) -> Tensor:
    """Drop rows of the change, the same in the whole batch, as KohakuBlueleaf/LyCORIS does.

    `addition` is (B, ..., out) or (B, out, h, w). What stays is scaled up, unlike there.
    """
    size = (addition.shape[1], 1, 1) if addition.dim() == 4 else (addition.shape[-1],)
    return addition * keep_mask(size, probability, addition)
