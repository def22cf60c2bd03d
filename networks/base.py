"""Adapters: small trainable layers beside those of the base model.

An adapter is a side-car: its parameters live in the network, a forward hook adds their part to a
layer's output, and the base model's own weights and state dict stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from networks.files import read_layers, write_layers
from networks.keys import kohya_name, network_metadata, split_component
from networks.layer import AdapterLayer, dynamic_rank, is_spatial

logger = logging.getLogger(__name__)

Rank = int | Literal["dynamic"]


class Adapter(nn.Module):
    """A family of layers, one for each targeted layer of the base model.

    Args:
        rank: of Linear layers and 1x1 convolutions; "dynamic" takes one for each layer by its size.
        alpha: the change is scaled by alpha / rank; null means alpha = rank (1 with "dynamic").
        conv_rank: also adapt the convolution blocks, with this rank for k x k kernels.
        conv_alpha: alpha of k x k convolutions; null means alpha, or conv_rank if that is null.
        targets: module paths as `unet`, `unet.up_blocks`, `text_encoders`; `*` is anything.
        multiplier: strength at which it is applied; files hold the weights at strength 1.
    """

    layer_class: ClassVar[type[AdapterLayer]]
    file_module: ClassVar[str] = "lycoris.kohya"  # by which readers tell what a file is
    algorithm: ClassVar[str | None] = None
    dynamic_factor: ClassVar[int] = 1
    requires: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        *,
        rank: Rank = 16,
        alpha: float | None = None,
        conv_rank: Rank | None = None,
        conv_alpha: float | None = None,
        targets: Sequence[str] = ("unet",),
        multiplier: float = 1.0,
    ):
        super().__init__()
        for name, value in (("rank", rank), ("conv_rank", conv_rank)):
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: {value} is not a rank; it must be at least 1")
        if not targets:
            raise ValueError("targets: is empty; name parts of the model, such as [unet]")
        self.rank = rank
        self.alpha = _alpha(alpha, rank)
        self.conv_rank = conv_rank
        self.conv_alpha = _alpha(conv_alpha or alpha, conv_rank or rank)
        self.targets = tuple(targets)
        self.multiplier = multiplier
        self.layers = nn.ModuleDict()  # by their name in files
        self._paths: dict[str, str] = {}  # name in files -> module path in the base
        self._base: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def attach(self, model: Any) -> None:
        """Put a layer beside each target of `model`.

        Raises:
            ValueError: a target pattern matches no layer.
        """
        targets = model.adapter_layers(self.targets, conv=self.conv_rank is not None)
        for path, base in targets.items():
            name = kohya_name(model, path)
            self._paths[name] = path
            self._base[name] = base
            if name not in self.layers:
                with base.weight.device:
                    self.layers[name] = self._make_layer(base)
        self._hook_up()

    def detach(self) -> None:
        """Take the layers off again; the base computes as before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def merge(self) -> None:
        """Add every layer's change to the base's weights, and detach."""
        for name, layer in self._named_layers():
            weight = self._base[name].weight
            delta = self.multiplier * layer.delta_weight()
            weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))
        self.detach()

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Return the inputs as they are: an adapter works inside of the layers."""
        return inputs

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, layer in self._named_layers():
            component, _ = split_component(self._paths[name])
            groups.setdefault(component, []).extend(layer.parameters())
        return groups

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write every layer to a .safetensors file under the field's key names."""
        write_layers(path, self.layers, dtype=dtype, metadata=metadata)

    def load(self, path: Path) -> None:
        """Take over the layers of a file; rank and alpha of each are read from it.

        Raises:
            ValueError: the file is no such adapter, or is for other layers than the targets.
        """
        for name, tensors in read_layers(path, list(self.layers)).items():
            base = self._base[name]
            try:
                rank = self.layer_class.rank_of(tensors)
                alpha = tensors.get("alpha", torch.tensor(float(rank)))
                layer = self.layer_class(base, rank=rank, alpha=float(alpha))
                layer.load_state_dict({**tensors, "alpha": alpha.float()})
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{path}: {name} is no {type(self).__name__} of this layer: {error}"
                ) from error
            self.layers[name] = layer
        self._take_over_settings(path)
        for name, layer in self._named_layers():
            layer.to(self._base[name].weight.device)  # last: without weights it is `meta`
        self.detach()
        self._hook_up()

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: algorithm, rank, alpha, targets."""
        args = {"targets": " ".join(self.targets)}
        if self.algorithm is not None:
            args["algo"] = self.algorithm
        if self.conv_rank is not None:
            args |= {"conv_dim": str(self.conv_rank), "conv_alpha": f"{self.conv_alpha:g}"}
        return network_metadata(
            model,
            module=self.file_module,
            rank="Dynamic" if self.rank == "dynamic" else str(self.rank),
            alpha=f"{self.alpha:g}",
            args=args,
        )

    def _make_layer(self, base: nn.Module) -> AdapterLayer:
        spatial = is_spatial(base) and self.conv_rank is not None
        rank = self.conv_rank if spatial else self.rank
        alpha = self.conv_alpha if spatial else self.alpha
        if not isinstance(rank, int):
            rank = self.dynamic_factor * dynamic_rank(base)
        return self.layer_class(base, rank=rank, alpha=alpha)

    def _take_over_settings(self, path: Path) -> None:
        """Let ranks and alphas say what the layers are, after a file was read."""
        for spatial, prefix in ((False, ""), (True, "conv_")):
            layers = [layer for _, layer in self._named_layers() if layer.is_spatial == spatial]
            if not layers:
                continue
            ranks = {layer.rank for layer in layers}
            found: dict[str, Any] = {
                f"{prefix}rank": ranks.pop() if len(ranks) == 1 else "dynamic",
                f"{prefix}alpha": float(layers[0].alpha),
            }
            for key, value in found.items():
                if getattr(self, key) != value:
                    shown = value if isinstance(value, str) else f"{value:g}"
                    logger.warning("%s: has %s %s, which is taken", path, key, shown)
                    setattr(self, key, value)

    def _named_layers(self) -> list[tuple[str, AdapterLayer]]:
        return [(n, layer) for n, layer in self.layers.items() if isinstance(layer, AdapterLayer)]

    def _hook_up(self) -> None:
        for name, base in self._base.items():
            self._hooks.append(base.register_forward_hook(self._hook(name)))

    def _hook(self, name: str):
        layer: Any = self.layers[name]

        def add(_base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            addition = layer(args[0])
            if self.multiplier != 1.0:
                addition = addition * self.multiplier
            return output + addition.to(output.dtype)

        return add


def _alpha(alpha: float | None, rank: Rank) -> float:
    """alpha as given; null and 0 mean the rank, which "dynamic" does not have."""
    return float(alpha or (rank if isinstance(rank, int) else 1))
