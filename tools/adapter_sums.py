"""Sums of adapters' changes: in a base model's weights, or as one LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modules.files import replacing
from modules.models import load
from modules.models.model_spec import model_spec
from modules.prediction_probe import grey_batches, settle_prediction
from modules.run_settings import model_name
from modules.savers import DTYPES
from networks.matching import layers_for
from networks.reading import read_layers
from tools.adapter_layers import (
    NOTE,
    Layer,
    as_lora,
    change_of,
    common_ranks,
    factors_of,
    is_of_text,
    is_plain_lora,
    kept_metadata,
    kind_name,
    show_ranks,
    write_lora,
)
from tools.command import check_new
from tools.low_rank import Errors, Factors, Limits, decompose, join, shorten
from tools.model_forms import write_model_directory


@dataclass(frozen=True)
class Source:
    """An adapter's file and how strongly it counts in the UNet and in the text encoders."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def weight(self, name: str) -> float:
        """That of a layer."""
        return self.text if is_of_text(name) else self.unet

    def __str__(self) -> str:
        own = f"{self.unet:g}" if self.unet == self.text else f"{self.unet:g}:{self.text:g}"
        return f"{self.path.name}:{own}"


@dataclass(frozen=True)
class Part:
    """What a source has for one layer."""

    source: Source
    tensors: Layer
    base: Any  # the model's layer, or None where no model is needed


@torch.no_grad()
def merge_into_base(
    sources: Sequence[Source],
    output: Path,
    *,
    base: str,
    dtype: str = "fp16",
    device: str = "cpu",
) -> str:
    """Write the base model with every change added: W + sum of weight * change, in float32.

    Changes of DoRAs are those of the base's own weights. Returns what was done, in words.

    Raises:
        ValueError: an adapter is for another model, can't be read, or `output` exists.
    """
    check_new(output)
    is_file = output.suffix == ".safetensors"
    trial = load(base, weights=False)
    if is_file:
        trial.check_single_file()
    for source in sources:  # before the weights are read
        layers_for(trial, source.path)
    model = load(base)
    settle_prediction(model, partial(grey_batches, model, ""))
    found: dict[str, list[Part]] = {}
    for source in sources:
        layers = layers_for(model, source.path)
        for name, layer in layers.items():
            found.setdefault(name, []).append(Part(source, layer.tensors, layer.base))
        model.mark_changed([layer.path for layer in layers.values()])
    for name, parts in found.items():
        weight = parts[0].base.weight
        weight.add_(_sum(name, parts, device).to(weight.device))
    what = f"with {', '.join(map(str, sources))} in {len(found)} layers"
    metadata = {
        **model_spec(model, title=output.stem),
        NOTE: f"merged by sd-trainer: {model_name(base)} {what}",
    }
    if is_file:
        with replacing(output) as temporary:
            model.save_single_file(temporary, dtype=DTYPES[dtype], metadata=metadata)
    else:
        write_model_directory(model, output, dtype=DTYPES[dtype], metadata=metadata)
    return f"{output}: {base} {what}"


@torch.no_grad()
def merge_adapters(
    sources: Sequence[Source],
    output: Path,
    *,
    rank: int | None = None,
    model: str | None = None,
    dtype: str = "fp16",
    device: str = "cpu",
) -> str:
    """Write one LoRA whose change is the sum of weight * change of all; returns what is lost.

    Without `rank` the ranks of LoRAs add up, exactly. LoHas, LoKrs and DoRAs need a `rank`, and the
    base `model` for the shapes of its layers, DoRAs also for its weights.

    Raises:
        ValueError: there is no `rank` or `model` for what needs it, an adapter is for another
            model or can't be read, or `output` exists.
    """
    check_new(output, suffix=".safetensors")
    limits, errors = Limits(rank=rank), Errors()
    read = [read_layers(source.path) for source in sources]
    metadata = kept_metadata([source.path for source in sources])
    for source, layers in zip(sources, read, strict=True):
        _check_kinds(source, layers, rank=rank, model=model)
    changes = {
        name: _as_factors(name, parts, limits, errors, device)
        for name, parts in _by_layer(sources, read, model).items()
    }
    lost = "exact: ranks add up" if rank is None else errors.describe()
    ranks = show_ranks(factors.rank for factors in changes.values())
    told = f"{', '.join(map(str, sources))} in {len(changes)} layers, ranks {ranks}, {lost}"
    layers = as_lora(changes, common_ranks(changes))
    write_lora(output, layers, dtype=dtype, metadata=metadata, note=f"merged by sd-trainer: {told}")
    return f"{output}: {told}"


def _check_kinds(
    source: Source, layers: Mapping[str, Layer], *, rank: int | None, model: str | None
) -> None:
    """Check that there is what an adapter needs that is no plain LoRA."""
    kinds = {kind_name(tensors) for tensors in layers.values() if not is_plain_lora(tensors)}
    if kinds and (rank is None or model is None):
        what = "weights" if any(kind.startswith("DoRA") for kind in kinds) else "shapes"
        raise ValueError(
            f"{source.path}: is a {' and '.join(sorted(kinds))}, of which a LoRA is made by SVD, "
            f"with the {what} of its base model; give --rank and --model"
        )


def _by_layer(
    sources: Sequence[Source], read: Sequence[Mapping[str, Layer]], model: str | None
) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    if model is None:
        for source, layers in zip(sources, read, strict=True):
            for name, tensors in layers.items():
                found.setdefault(name, []).append(Part(source, tensors, None))
        return found
    decomposed = any("dora_scale" in tensors for layers in read for tensors in layers.values())
    base = load(model, weights=decomposed)
    for source in sources:
        for name, layer in layers_for(base, source.path).items():
            found.setdefault(name, []).append(Part(source, layer.tensors, layer.base))
    return found


def _as_factors(
    name: str, parts: Sequence[Part], limits: Limits, errors: Errors, device: str
) -> Factors:
    """One layer's sum as the product of two matrices; what is lost goes to `errors`."""
    if not all(is_plain_lora(part.tensors) for part in parts):
        change = _sum(name, parts, device)
        kept, lost = decompose(change, limits)
        errors.note(name, lost, float(change.square().sum()))
        return kept
    weighted = [
        (part.source.weight(name), factors_of({k: t.to(device) for k, t in part.tensors.items()}))
        for part in parts
    ]
    try:
        whole = join(weighted)
    except ValueError as error:
        raise ValueError(f"{parts[-1].source.path}: {name}: {error}") from error
    if limits.rank is None:
        return whole
    kept, lost, squares = shorten(whole, limits)
    errors.note(name, lost, squares)
    return kept


def _sum(name: str, parts: Sequence[Part], device: str) -> torch.Tensor:
    """The weighted sum of a layer's changes, float32."""
    changes = [
        part.source.weight(name)
        * change_of(part.tensors, part.base, where=f"{part.source.path}: {name}", device=device)
        for part in parts
    ]
    return torch.stack(changes).sum(dim=0)
