"""LoRA (Hu et al. 2021, arXiv:2106.09685); with `conv_rank` its convolutional form, LoCon.

dW = alpha / rank * up @ down, `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]). Key names and
initialisation are those of kohya-ss/sd-scripts and KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from networks.base import Adapter
from networks.layer import AdapterLayer, sizes_of


class LoRALayer(AdapterLayer):
    """`up(down(x)) * alpha / rank`; `up` starts at zero."""

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        inputs, outputs = sizes_of(base)
        if isinstance(base, nn.Conv2d):
            rank = min(rank, inputs, outputs)
        super().__init__(base, rank=rank, alpha=alpha)
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
        return self.lora_up(self.lora_down(x) * self.scale)

    def delta_weight(self) -> Tensor:
        down, up = self.lora_down.weight.float(), self.lora_up.weight.float()
        delta = up.flatten(1) @ down.flatten(1) * self.scale
        return delta.view(up.shape[0], *down.shape[1:])

    @staticmethod
    def rank_of(tensors: Mapping[str, Tensor]) -> int:
        return tensors["lora_down.weight"].shape[0]


class LoRA(Adapter):
    """Low-rank adapters beside Linear and convolution layers."""

    layer_class: ClassVar = LoRALayer
    file_module: ClassVar = "networks.lora"
    dynamic_factor: ClassVar = 2
