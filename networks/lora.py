"""LoRA (Hu et al. 2021, arXiv:2106.09685); with `conv_rank` its convolutional form, LoCon.

dW = alpha / rank * up @ down, `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]). Key names and
initialisation are those of kohya-ss/sd-scripts and KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import Adapter
from networks.changes import LowRank
from networks.dropout import Dropout, drop_ranks
from networks.layer import AdapterLayer, sizes_of


class LoRALayer(AdapterLayer):
    """`up(down(x)) * alpha / rank`; `up` starts at zero."""

    scaled_factors: ClassVar = ("lora_up.weight",)

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__(base, rank=rank, alpha=alpha)
        inputs, outputs = sizes_of(base)
        self.lora_down: nn.Conv2d | nn.Linear
        self.lora_up: nn.Conv2d | nn.Linear
        if isinstance(base, nn.Conv2d):
            self.lora_down = nn.Conv2d(
                inputs,
                rank,
                base.kernel_size,  # type: ignore[arg-type]
                base.stride,  # type: ignore[arg-type]
                base.padding,  # type: ignore[arg-type]
                bias=False,
            )
            self.lora_up = nn.Conv2d(rank, outputs, 1, bias=False)
        else:
            self.lora_down = nn.Linear(inputs, rank, bias=False)
            self.lora_up = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_down(x) * self.scale
        if self.training and self.dropouts.dropout:
            low = F.dropout(low, self.dropouts.dropout)
        if self.training and self.dropouts.rank_dropout:
            low = drop_ranks(low, self.dropouts.rank_dropout)
        return self.lora_up(low)

    def change(self, multiplier: float) -> LowRank | None:
        if isinstance(self.lora_down, nn.Conv2d):
            return None
        return LowRank(self.scale * multiplier)

    def change_factors(self) -> tuple[Tensor, ...]:
        return self.lora_down.weight, self.lora_up.weight

    def delta_weight(self) -> Tensor:
        down, up = self.lora_down.weight.float(), self.lora_up.weight.float()
        delta = up.flatten(1) @ down.flatten(1) * self.scale
        return delta.view(up.shape[0], *down.shape[1:])

    @staticmethod
    def usable_rank(base: nn.Module, rank: int) -> int:
        return min(rank, *sizes_of(base)) if isinstance(base, nn.Conv2d) else rank

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        return tensors["lora_down.weight"].shape[0]


@dataclass(kw_only=True, eq=False, repr=False)
class LoRA(Adapter):
    """Low-rank adapters beside Linear and convolution layers.

    Args:
        dropout: probability of dropping each value between `down` and `up`.
        lora_plus_ratio: the learning rate of `up` is so many times that of `down` (LoRA+, Hayou et
            al. 2024, arXiv:2402.12354); usual is 16.
    """

    layer_class: ClassVar = LoRALayer
    file_module: ClassVar = "networks.lora"
    algorithm: ClassVar = "locon"  # where readers other than sd-scripts are meant
    dynamic_factor: ClassVar = 2

    dropout: float = 0.0
    lora_plus_ratio: float = 1.0

    def _check(self) -> None:
        super()._check()
        if self.lora_plus_ratio <= 0:
            raise ValueError(f"lora_plus_ratio: {self.lora_plus_ratio} is not above 0; usual is 16")

    @property
    def rate_factors(self) -> Mapping[str, float]:
        return {} if self.lora_plus_ratio == 1.0 else {"*.lora_up": self.lora_plus_ratio}

    def _dropouts(self) -> Dropout:
        return Dropout(
            dropout=self.dropout,
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
        )
