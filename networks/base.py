"""Adapters: small trainable layers beside those of the base model.

An adapter is a side-car: its parameters live in the network, a forward hook adds their part to a
layer's output, and the base model's own weights and state dict stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from networks.keys import kohya_name, split_component


class AdapterLayer(nn.Module):
    """What one layer of the base gets added."""

    def forward(self, x: Tensor) -> Tensor:
        """The addition to the layer's output for the input `x`."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def delta_weight(self) -> Tensor:
        """The same as a change of the layer's weight, in its shape, float32."""
        raise TypeError(f"{type(self).__name__} has no delta_weight")


class Adapter(nn.Module):
    """A family of layers, one for each targeted layer of the base model.

    Args:
        targets: module paths as `unet`, `unet.up_blocks`, `text_encoders`; `*` is anything.
        multiplier: strength at which it is applied; files hold the weights at strength 1.
    """

    requires: ClassVar[Sequence[str]] = ()

    def __init__(self, *, targets: Sequence[str] = ("unet",), multiplier: float = 1.0):
        super().__init__()
        if not targets:
            raise ValueError("targets: is empty; name parts of the model, such as [unet]")
        self.targets = tuple(targets)
        self.multiplier = multiplier
        self.layers = nn.ModuleDict()  # by their name in files
        self._paths: dict[str, str] = {}  # name in files -> module path in the base
        self._base: dict[str, Any] = {}
        self._hooks: list[Any] = []

    # -- what an algorithm says -------------------------------------------------------------

    covers_conv: bool = False

    def make_layer(self, base: nn.Module) -> AdapterLayer:
        """A fresh layer beside `base`, which changes nothing yet."""
        raise TypeError(f"{type(self).__name__} does not make layers")

    def layer_from_tensors(self, base: nn.Module, tensors: Mapping[str, Tensor]) -> AdapterLayer:
        """The layer that the tensors of a file describe."""
        raise TypeError(f"{type(self).__name__} cannot be read from a file")

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: algorithm, rank, alpha."""
        return {}

    # -- the side-car -----------------------------------------------------------------------

    def attach(self, model: Any) -> None:
        """Put a layer beside each target of `model`.

        Raises:
            ValueError: a target pattern matches no layer.
        """
        targets = model.adapter_layers(self.targets, conv=self.covers_conv)
        for path, base in targets.items():
            name = kohya_name(model, path)
            self._paths[name] = path
            self._base[name] = base
            if name not in self.layers:
                with base.weight.device:
                    self.layers[name] = self.make_layer(base)
            self._hooks.append(base.register_forward_hook(self._hook(name)))

    def detach(self) -> None:
        """Take the layers off again; the base computes as before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def merge(self) -> None:
        """Add every layer's change to the base's weights, and detach."""
        for name, layer in self.layers.items():
            weight = self._base[name].weight
            assert isinstance(layer, AdapterLayer)
            delta = self.multiplier * layer.delta_weight()
            weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))
        self.detach()

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        return inputs

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, layer in self.layers.items():
            component, _ = split_component(self._paths[name])
            groups.setdefault(component, []).extend(layer.parameters())
        return groups

    def _hook(self, name: str):
        layer: Any = self.layers[name]

        def add(_base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            addition = layer(args[0])
            if self.multiplier != 1.0:
                addition = addition * self.multiplier
            return output + addition.to(output.dtype)

        return add

    # -- files ------------------------------------------------------------------------------

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write every layer to a .safetensors file under the field's key names."""
        tensors = {
            key: value.detach().to("cpu", dtype).contiguous()
            for key, value in self.layers.state_dict().items()
        }
        save_file(tensors, path, metadata={"format": "pt", **metadata})

    def load(self, path: Path) -> None:
        """Take over the layers of a file; rank and alpha of each are read from it.

        Raises:
            ValueError: the file is no such adapter, or is for other layers than the targets.
        """
        tensors = _read(path)
        for key in tensors:
            name = key.partition(".")[0]
            if name not in self.layers:
                known = next(iter(self.layers), "none")
                raise ValueError(
                    f"{path}: {key} belongs to no layer of this network (it has {known}, ...); "
                    "check its targets and the base model"
                )
        missing = [n for n in self.layers if not any(key.startswith(n + ".") for key in tensors)]
        if missing:
            raise ValueError(
                f"{path}: has no tensors for {len(missing)} of {len(self.layers)} layers, "
                f"first {missing[0]}; check the network's targets and conv_rank"
            )
        for name in list(self.layers):
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            try:
                layer = self.layer_from_tensors(self._base[name], own)
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"{path}: {name} does not fit the base model: {error}") from error
            self.layers[name] = layer.to(self._base[name].weight.device)
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        for name, base in self._base.items():
            self._hooks.append(base.register_forward_hook(self._hook(name)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as .safetensors: {error}") from error
