"""PFG, prompt-free generation: image features as further tokens of the prompt.

One linear layer turns the features of an image, for instance a tagger's last layer but one, into
tokens that are appended to the text embedding. Idea and file format: laksjdjf's pfg-webui.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.verification import Comparison, Verified, check_dtype, check_names
from networks.conditioner import Conditioner
from networks.files import read_metadata, read_named, write_tensors
from networks.key_rules import PFG_KEYS, check_keys

_WEIGHT, _BIAS = "pfg_linear.weight", "pfg_linear.bias"


class PFG(Conditioner):
    """Appends `num_tokens` tokens made of image features; zeros for a negative prompt.

    Args:
        input_size: numbers in an image's features: 768 for WD14's ViT, 1024 for its SwinV2.
        num_tokens: tokens that are appended.
        dropout: probability of training an image on zeros, as for a negative prompt.
        features: the dataset's side input that holds the features.
        multiplier: strength at which it is applied.
    """

    file_kind: ClassVar[str] = "pfg"
    suffixes: ClassVar[Sequence[str]] = (".safetensors", ".pt")  # its readers want the .pt
    pfg_linear: nn.Linear

    def __init__(
        self,
        *,
        input_size: int = 768,
        num_tokens: int = 10,
        dropout: float = 0.0,
        features: str = "pfg",
        multiplier: float = 1.0,
    ):
        super().__init__()
        for name, value in (("input_size", input_size), ("num_tokens", num_tokens)):
            if value < 1:
                raise ValueError(f"{name}: {value} is less than 1")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout: {dropout} is not a probability from 0 to 1")
        self.input_size = input_size
        self.num_tokens = num_tokens
        self.dropout = dropout
        self.features = features
        self.requires = (features,)
        self.multiplier = multiplier
        self._tagger: dict[str, str] = {}

    def attach(self, model: Any) -> None:
        """Make the layer for the width of the model's text embedding."""
        self._width = model.text_width
        with next(model.denoiser.parameters()).device:
            self.pfg_linear = nn.Linear(self.input_size, self.num_tokens * self._width)

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Append the tokens to the text embedding."""
        states = inputs.encoder_hidden_states  # (B, tokens, D)
        features = batch.extras[self.features].flatten(1)  # (B, input_size)
        tokens = self.pfg_linear(features).unflatten(1, (self.num_tokens, self._width))
        tokens = tokens * self._strength(batch, tokens)[:, None, None]
        states = torch.cat([states, tokens.to(states.dtype)], dim=1)
        return replace(inputs, encoder_hidden_states=states)

    def check_extras(self, extras: Mapping[str, Tensor]) -> None:
        """Check the features of one image.

        Raises:
            ValueError: they are of another size.
        """
        found = extras[self.features].numel()
        if found != self.input_size:
            raise ValueError(
                f"{self.features!r} has {found} numbers, input_size is {self.input_size}; set "
                f"input_size: {found}, or take features of the tagger that this PFG was trained "
                "with"
            )

    def check_dataset(self, dataset: Any) -> None:
        """Note the tagger that a dataset's features are of."""
        origin = dataset.origin(self.features) if hasattr(dataset, "origin") else {}
        self._tagger = {key: origin[key] for key in ("tagger", "sha256") if key in origin}

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the layer, to a .pt as the programs that use it read it, else to a .safetensors."""
        write_tensors(path, self.state_dict(), dtype=dtype, metadata=metadata)

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written file holds the layer, as its readers call it."""
        comparison, stored, live = Comparison(), read_named(path), self.state_dict()
        check_keys(stored, PFG_KEYS)
        check_names(stored, live)
        for key, tensor in stored.items():
            check_dtype(key, tensor.dtype, dtype)
            comparison.add_tensor(key, tensor, live[key])
        return comparison.result(keys=len(stored))

    def load(self, path: Path) -> None:
        """Take over the layer of a .safetensors or .pt file; it says how many tokens there are.

        Raises:
            ValueError: the file is no PFG, or one for another model or another tagger's features.
        """
        tensors = read_named(path)
        if not {_WEIGHT, _BIAS} <= tensors.keys():
            raise ValueError(f"{path}: is no PFG (it has no {_WEIGHT} and {_BIAS})")
        rows, columns = tensors[_WEIGHT].shape
        if columns != self.input_size or rows % self._width:
            raise ValueError(
                f"{path}: makes {rows} numbers of {columns} features; this model wants a multiple "
                f"of {self._width}, input_size is {self.input_size}"
            )
        self._check_tagger(path)
        self.num_tokens = rows // self._width
        device = self.pfg_linear.weight.device
        self.pfg_linear = nn.Linear(columns, rows)
        self.load_state_dict({key: tensors[key].float() for key in (_WEIGHT, _BIAS)})
        self.pfg_linear.to(device)  # last: without weights it is `meta`

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: the layer's sizes and the tagger of its features."""
        return {
            "pfg_input_size": str(self.input_size),
            "pfg_num_tokens": str(self.num_tokens),
            **{f"pfg_{key}": value for key, value in self._tagger.items()},
            **model.base_version(),
        }

    def _check_tagger(self, path: Path) -> None:
        known = read_metadata(path)
        trained_with, given = known.get("pfg_sha256"), self._tagger.get("sha256")
        if trained_with and given and trained_with != given:
            raise ValueError(
                f"{path}: was trained with features of {known.get('pfg_tagger')}, the dataset's "
                f"are of {self._tagger.get('tagger')}; make them with the same tagger"
            )
        if trained_with and not given:
            self._tagger = {"tagger": known.get("pfg_tagger", ""), "sha256": trained_with}

    def _strength(self, batch: Batch, tokens: Tensor) -> Tensor:
        """The factor of each image's tokens, (B,): zeros for negative prompts and dropped ones."""
        strength = torch.full(tokens.shape[:1], self.multiplier, device=tokens.device)
        if batch.is_negative is not None:
            strength = strength * ~batch.is_negative
        if self.training and self.dropout:
            strength = strength * (torch.rand_like(strength) >= self.dropout)
        return strength.to(tokens.dtype)
