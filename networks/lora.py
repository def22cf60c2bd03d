"""LoRA (Hu et al. 2021, arXiv:2106.09685); with `conv_rank` its convolutional form, LoCon.

dW = alpha / rank * up @ down, `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]). Key names and
initialisation are those of kohya-ss/sd-scripts and KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.base import Adapter, AdapterLayer
from networks.keys import network_metadata

logger = logging.getLogger(__name__)


class LoRA(Adapter):
    """Low-rank adapters beside Linear and convolution layers.

    Args:
        rank: of Linear layers and 1x1 convolutions.
        alpha: the change is scaled by alpha / rank; null means alpha = rank.
        conv_rank: also adapt the convolution blocks, with this rank for k x k kernels (LoCon).
        conv_alpha: alpha of k x k convolutions; null means alpha, or conv_rank if that is null.
        targets: module paths as `unet`, `unet.up_blocks`, `text_encoders`.
        multiplier: strength at which it is applied.
    """

    def __init__(
        self,
        *,
        rank: int = 16,
        alpha: float | None = None,
        conv_rank: int | None = None,
        conv_alpha: float | None = None,
        targets: Sequence[str] = ("unet",),
        multiplier: float = 1.0,
    ):
        super().__init__(targets=targets, multiplier=multiplier)
        for name, value in (("rank", rank), ("conv_rank", conv_rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not a rank; it must be at least 1")
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.conv_rank = conv_rank
        default = alpha if alpha is not None else conv_rank
        self.conv_alpha = float(conv_alpha if conv_alpha is not None else default or 0)
        self.covers_conv = conv_rank is not None

    def make_layer(self, base: nn.Module) -> LoRALayer:
        if _kernel_size(base) == (1, 1):
            return LoRALayer(base, rank=self.rank, alpha=self.alpha)
        rank = self.conv_rank if self.conv_rank is not None else self.rank
        alpha = self.conv_alpha if self.conv_rank is not None else self.alpha
        return LoRALayer(base, rank=rank, alpha=alpha)

    def layer_from_tensors(self, base: nn.Module, tensors: Mapping[str, Tensor]) -> LoRALayer:
        rank = tensors["lora_down.weight"].shape[0]
        alpha = float(tensors["alpha"]) if "alpha" in tensors else float(rank)
        layer = LoRALayer(base, rank=rank, alpha=alpha)
        layer.load_state_dict({"alpha": torch.tensor(alpha), **tensors})
        return layer

    def load(self, path: Path) -> None:
        super().load(path)
        linear = [layer for layer in self._lora_layers() if not layer.is_spatial]
        spatial = [layer for layer in self._lora_layers() if layer.is_spatial]
        found: dict[str, Any] = {}
        if linear:
            found |= {"rank": linear[0].rank, "alpha": float(linear[0].alpha)}
        if spatial:
            found |= {"conv_rank": spatial[0].rank, "conv_alpha": float(spatial[0].alpha)}
        for name, value in found.items():
            if getattr(self, name) != value:
                logger.warning("%s: has %s %g, which is taken", path, name, value)
                setattr(self, name, value)

    def _lora_layers(self) -> list[LoRALayer]:
        return [layer for layer in self.layers.values() if isinstance(layer, LoRALayer)]

    def describe(self, model: Any) -> dict[str, str]:
        args = {"targets": " ".join(self.targets)}
        if self.conv_rank is not None:
            args |= {"conv_dim": str(self.conv_rank), "conv_alpha": f"{self.conv_alpha:g}"}
        return network_metadata(
            model,
            module="networks.lora",
            rank=str(self.rank),
            alpha=f"{self.alpha:g}",
            args=args,
        )


class LoRALayer(AdapterLayer):
    """`up(down(x)) * alpha / rank`; `up` starts at zero, so that a fresh layer changes nothing."""

    alpha: Tensor

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__()
        self.lora_down: nn.Conv2d | nn.Linear
        self.lora_up: nn.Conv2d | nn.Linear
        if isinstance(base, nn.Conv2d):
            rank = min(rank, base.in_channels, base.out_channels)
            self.lora_down = nn.Conv2d(
                base.in_channels,
                rank,
                base.kernel_size,  # type: ignore[arg-type]
                base.stride,  # type: ignore[arg-type]
                base.padding,  # type: ignore[arg-type]
                bias=False,
            )
            self.lora_up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        elif isinstance(base, nn.Linear):
            self.lora_down = nn.Linear(base.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, base.out_features, bias=False)
        else:
            raise TypeError(f"LoRA adapts Linear and Conv2d layers, not {type(base).__name__}")
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.rank = rank
        self.is_spatial = _kernel_size(base) != (1, 1)
        self.scale = alpha / rank
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_up(self.lora_down(x) * self.scale)

    def delta_weight(self) -> Tensor:
        down, up = self.lora_down.weight.float(), self.lora_up.weight.float()
        delta = up.flatten(1) @ down.flatten(1) * self.scale
        return delta.view(up.shape[0], *down.shape[1:])


def _kernel_size(layer: nn.Module) -> tuple[int, ...]:
    return layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
