"""What a hypernetwork consists of: small perceptrons, one for keys and one for values.

Order of the layers, names in files and initialisation are those of AUTOMATIC1111's
stable-diffusion-webui.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

Activation = Literal[
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"
]
"""Those that AUTOMATIC1111 and ComfyUI both know."""

WeightInit = Literal[
    "Normal", "Zero", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
}  # "linear" is no layer at all


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Which layers a perceptron has; raises ValueError where it can't have them."""

    layer_structure: tuple[float, ...]
    activation_func: str
    layer_norm: bool
    activate_output: bool

    def __post_init__(self) -> None:
        shown = [f"{width:g}" for width in self.layer_structure]
        if len(shown) < 2 or shown[0] != "1" or shown[-1] != "1":
            raise ValueError(f"layer_structure: [{', '.join(shown)}] doesn't begin and end with 1")
        if min(self.layer_structure) <= 0:
            raise ValueError(f"layer_structure: [{', '.join(shown)}] has a width of 0 or less")
        if self.activation_func not in get_args(Activation):
            raise ValueError(
                f"activation_func: {self.activation_func!r} is not one of "
                f"{', '.join(get_args(Activation))}"
            )

    @classmethod
    def of_file(cls, content: Mapping[Any, Any]) -> Structure:
        """Read it from a file; defaults are what its earliest readers took."""
        return cls(
            layer_structure=tuple(content.get("layer_structure") or (1, 2, 1)),
            activation_func=content.get("activation_func") or "linear",
            layer_norm=bool(content.get("is_layer_norm", False)),
            activate_output=bool(content.get("activate_output", True)),
        )

    def for_file(self) -> dict[str, Any]:
        """The entries of a file; dropout is a matter of training and stays out."""
        return {
            "layer_structure": list(self.layer_structure),
            "activation_func": self.activation_func,
            "is_layer_norm": self.layer_norm,
            "activate_output": self.activate_output,
            "use_dropout": False,
            "dropout_structure": [0] * len(self.layer_structure),
            "last_layer_dropout": False,
        }


class Perceptron(nn.Module):
    """`linear(x)`, of as many numbers as `x` has, (B, tokens, size)."""

    def __init__(self, size: int, structure: Structure, *, dropout: float):
        super().__init__()
        self.dropout = dropout
        self._ends: set[int] = set()  # of hidden layers, behind which dropout acts
        layers: list[nn.Module] = []
        widths = [int(size * factor) for factor in structure.layer_structure]
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            is_last = number == len(widths) - 2
            layers.append(nn.Linear(inputs, outputs))
            activation = _ACTIVATIONS.get(structure.activation_func)
            if activation and (not is_last or structure.activate_output):
                layers.append(activation())
            if structure.layer_norm:
                layers.append(nn.LayerNorm(outputs))
            if not is_last:
                self._ends.add(len(layers) - 1)
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.linear):
            x = layer(x)
            if number in self._ends:
                x = F.dropout(x, self.dropout, self.training)
        return x

    def initialise(self, kind: WeightInit, activation: str) -> None:
        """Give the weights their first values; biases are 0, norms have N(0, 0.01).

        "Normal" is N(0, 0.01) too, and "Zero" the same but for the last layer, so that the
        perceptron gives 0 where its output is not activated.
        """
        layers = [layer for layer in self.linear if isinstance(layer, nn.Linear)]
        for layer in self.linear:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                init.normal_(layer.weight, std=0.01)
                init.zeros_(layer.bias)
        slope: Any = "leaky_relu" if activation == "leakyrelu" else "relu"
        for linear in layers:
            if kind == "XavierUniform":
                init.xavier_uniform_(linear.weight)
            elif kind == "XavierNormal":
                init.xavier_normal_(linear.weight)
            elif kind == "KaimingUniform":
                init.kaiming_uniform_(linear.weight, nonlinearity=slope)
            elif kind == "KaimingNormal":
                init.kaiming_normal_(linear.weight, nonlinearity=slope)
        if kind == "Zero":
            init.zeros_(layers[-1].weight)

    def load_in_order(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file, by the order of their layers.

        Numbers differ where the file's layers count dropout; the oldest are `linear1`, `linear2`.

        Raises:
            ValueError: they are other layers than these.
        """
        numbered: dict[tuple[int, str], Tensor] = {}
        for key, tensor in tensors.items():
            found = re.fullmatch(r"linear\.?(\d+)\.(weight|bias)", key)
            if found is None:
                raise ValueError(f"{key} belongs to no layer of a hypernetwork")
            numbered[int(found[1]), found[2]] = tensor
        own = {
            (number, name): parameter
            for number, layer in enumerate(self.linear)
            for name, parameter in layer.named_parameters()
        }
        theirs = [numbered[key] for key in sorted(numbered)]
        ours = sorted(own)
        shapes = [tuple(own[key].shape) for key in ours]
        if shapes != [tuple(tensor.shape) for tensor in theirs]:
            raise ValueError(f"its layers are others than those that it names: {shapes}")
        names = [f"linear.{number}.{name}" for number, name in ours]
        self.load_state_dict(dict(zip(names, theirs, strict=True)))
