"""LoRA (Hu et al. 2021, arXiv:2106.09685); with `conv_rank` its convolutional form, LoCon.

dW = alpha / rank * up @ down, `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]). Key names and
initialisation are those of kohya-ss/sd-scripts and KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import Adapter
from networks.dropout import Dropout, drop_ranks
from networks.keys import split_component
from networks.layer import AdapterLayer, sizes_of


class LoRALayer(AdapterLayer):
    """`up(down(x)) * alpha / rank`; `up` starts at zero."""

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

    def _as_written(self) -> dict[str, dict[str, Tensor]]:
        """All layers of a component with one alpha: diffusers takes one for all of them."""
        alphas = self._common_alphas()
        layers = super()._as_written()
        return {name: _with_alpha(tensors, alphas[name]) for name, tensors in layers.items()}

    def _as_configured(
        self, layers: Mapping[str, Mapping[str, Tensor]]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """With the alphas of the config again, where `_as_written` would take them out."""
        common = self._common_alphas()
        return {name: self._own_alpha(name, own, common) for name, own in layers.items()}

    def _own_alpha(
        self, name: str, tensors: Mapping[str, Tensor], common: Mapping[str, float]
    ) -> Mapping[str, Tensor]:
        layer = self.layers[name] if name in self._paths else None
        if layer is None or not {"lora_down.weight", "lora_up.weight"} <= tensors.keys():
            return tensors  # beside the targets, or none of ours: said when they are restored
        assert isinstance(layer, LoRALayer)
        same_rank = LoRALayer.rank_of(tensors) == layer.rank
        if same_rank and math.isclose(float(tensors["alpha"]), common[name], rel_tol=1e-6):
            return _with_alpha(tensors, float(layer.alpha))
        return tensors

    def _common_alphas(self) -> dict[str, float]:
        """By layer, the alpha that most layers of its component have."""
        paths = {**self._paths, **self._beside}
        components = {name: split_component(paths[name])[0] for name, _ in self._named_layers()}
        counts: dict[str, Counter[float]] = {}
        for name, layer in self._named_layers():
            counts.setdefault(components[name], Counter())[float(layer.alpha)] += 1
        common = {component: count.most_common(1)[0][0] for component, count in counts.items()}
        return {name: common[component] for name, component in components.items()}


def _with_alpha(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The same change with another alpha: the rest of the scale goes into `up`."""
    own = tensors["alpha"]
    if float(own) == alpha:
        return dict(tensors)
    up = tensors["lora_up.weight"].float() * (float(own) / alpha)
    return {**tensors, "lora_up.weight": up, "alpha": own.new_tensor(alpha)}
