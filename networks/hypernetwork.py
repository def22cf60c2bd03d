"""Hypernetworks: perceptrons before the keys and values of the UNet's attention.

What attention makes keys and values of, x, becomes x + perceptron(x), in self- and cross-attention
alike. Idea: NovelAI (2022); form and files: AUTOMATIC1111's stable-diffusion-webui, which ComfyUI
reads too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.mixed_precision import with_autocast
from modules.verification import Comparison, Verified, check_dtype, check_names
from networks.conditioner import Conditioner
from networks.files import read_tensors
from networks.key_rules import HYPERNETWORK_KEYS, check_keys
from networks.perceptron import Activation, Perceptron, Structure, WeightInit

logger = logging.getLogger(__name__)

_KEYS = (".to_k", ".add_k_proj")  # the second of the text, where attention has both at once
_VALUES = (".to_v", ".add_v_proj")


class Hypernetwork(Conditioner):
    """A pair of perceptrons for each width of what keys and values are made of.

    It has a small effect from the start, as AUTOMATIC1111's have; `weight_init: Zero` has none.

    Args:
        layer_structure: widths of the perceptron's layers, as multiples of what it is given.
        activation_func: behind every hidden layer.
        activate_output: and behind the last one.
        layer_norm: normalise behind every layer, the last included.
        dropout: probability of training without a number of a hidden layer.
        weight_init: how the weights begin.
        sizes: widths that are changed; null takes all that the model has.
        multiplier: strength at which it is applied.
    """

    suffixes: ClassVar[Sequence[str]] = (".pt",)

    def __init__(
        self,
        *,
        layer_structure: Sequence[float] = (1, 2, 1),
        activation_func: Activation = "relu",
        activate_output: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        weight_init: WeightInit = "Normal",
        sizes: Sequence[int] | None = None,
        multiplier: float = 1.0,
    ):
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout: {dropout} is not a probability below 1")
        self.structure = Structure(
            layer_structure=tuple(layer_structure),
            activation_func=activation_func,
            layer_norm=layer_norm,
            activate_output=activate_output,
        )
        self.dropout = dropout
        self.weight_init: WeightInit = weight_init
        self.sizes = sizes
        self.multiplier = multiplier
        self.pairs = nn.ModuleDict()  # by size
        self._targets: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def attach(self, model: Any) -> None:
        """Put a perceptron before every layer that makes keys or values.

        Raises:
            ValueError: the model has no such layers, or none of the sizes.
        """
        layers = model.adapter_layers(["unet"], conv=False)
        self._targets = {p: each for p, each in layers.items() if p.endswith(_KEYS + _VALUES)}
        there = self._sizes_there()
        if not there:
            raise ValueError("the model's attention has no to_k and to_v that it could change")
        missing = [size for size in self.sizes or () if size not in there]
        if missing:
            raise ValueError(f"sizes: {missing} are not in this model, which has {there}")
        if not self.pairs:
            with next(model.denoiser.parameters()).device:
                self._make_pairs(self.sizes or there)
            for perceptron in self.modules():
                if isinstance(perceptron, Perceptron):
                    perceptron.initialise(self.weight_init, self.structure.activation_func)
        self._hook_up()

    def detach(self) -> None:
        """Take the perceptrons off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Return the inputs as they are: it works inside of the denoiser's attention."""
        return inputs

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write a .pt file with a pair of state dicts for each size."""
        content: dict[Any, Any] = {
            int(size): tuple(
                {key: value.detach().to("cpu", dtype) for key, value in each.state_dict().items()}
                for each in cast(nn.ModuleList, pair)
            )
            for size, pair in self.pairs.items()
        }
        content |= self.structure.for_file() | {
            "weight_initialization": self.weight_init,
            "name": metadata.get("ss_output_name", path.stem),
            "step": int(metadata.get("ss_steps", 0)),
            "sd_checkpoint": None,
            "sd_checkpoint_name": metadata.get("ss_sd_model_name"),
            "optional_info": None,
            "metadata": dict(metadata),  # which its readers pass over
        }
        torch.save(content, path)

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written file has these perceptrons, in the form that its readers know."""
        content: dict[Any, Any] = dict(read_tensors(path))
        comparison, keys = Comparison(), 0
        sizes = [str(key) for key in content if isinstance(key, int)]
        check_names(sizes, list(self.pairs))
        for key, value in self.structure.for_file().items():
            if content.get(key) != value:
                raise ValueError(f"{key}: is {content.get(key)} in the file, not {value}")
        for size in sizes:
            pair = cast(nn.ModuleList, self.pairs[size])
            for number, stored in enumerate(content[int(size)]):
                live, where = pair[number].state_dict(), f"{size}.{number}."
                check_keys(stored, HYPERNETWORK_KEYS)
                check_names(stored, live, where=where)
                keys += len(stored)
                for key, tensor in stored.items():
                    check_dtype(where + key, tensor.dtype, dtype)
                    comparison.add_tensor(where + key, tensor, live[key])
        return comparison.result(keys=keys)

    def load(self, path: Path) -> None:
        """Take over a hypernetwork with the structure and the sizes that it has.

        Raises:
            ValueError: the file is no hypernetwork, or one for another kind of model.
        """
        content: dict[Any, Any] = dict(read_tensors(path))
        sizes = [key for key in content if isinstance(key, int)]
        if not sizes:
            raise ValueError(f"{path}: is no hypernetwork (it has no widths of layers)")
        foreign = [size for size in sizes if size not in self._sizes_there()]
        if foreign:
            raise ValueError(
                f"{path}: is for another kind of model: it changes widths {foreign}, this model "
                f"has {self._sizes_there()}"
            )
        device = next(self.parameters()).device
        try:
            structure = Structure.of_file(content)
            self._take_over(path, structure)
            self._make_pairs(sizes)
            for size in sizes:
                pair = cast(nn.ModuleList, self.pairs[str(size)])
                for perceptron, tensors in zip(pair, content[size], strict=True):
                    cast(Perceptron, perceptron).load_in_order(tensors)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: can't be taken over: {error}") from error
        self.to(device)
        self.detach()
        self._hook_up()

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: the base's family."""
        return model.base_version()

    def _sizes_there(self) -> list[int]:
        return sorted({layer.in_features for layer in self._targets.values()})

    def _take_over(self, path: Path, structure: Structure) -> None:
        for key, value in vars(structure).items():
            if getattr(self.structure, key) != value:
                logger.warning("%s: has %s %s, which is taken", path, key, value)
        self.structure = structure

    def _make_pairs(self, sizes: Sequence[int]) -> None:
        self.pairs = nn.ModuleDict(
            {
                str(size): nn.ModuleList(
                    Perceptron(size, self.structure, dropout=self.dropout) for _ in range(2)
                )  # keys, values
                for size in sizes
            }
        )

    def _hook_up(self) -> None:
        for path, layer in self._targets.items():
            if str(layer.in_features) in self.pairs:
                pair = cast(nn.ModuleList, self.pairs[str(layer.in_features)])
                perceptron = pair[0 if path.endswith(_KEYS) else 1]
                self._hooks.append(layer.register_forward_pre_hook(self._hook(perceptron)))

    def _hook(self, perceptron: nn.Module) -> Callable[[nn.Module, tuple], tuple]:
        def change(_layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = args
            with with_autocast(x):
                added = perceptron(x) * self.multiplier
            return (x + added.to(x.dtype), *rest)

        return change
