"""The difference between two models, as a LoRA."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.models import load
from modules.models.model_spec import model_spec
from modules.run_settings import model_name
from networks.keys import kohya_name, network_metadata, split_component
from networks.layer import is_spatial
from tools.adapter_layers import as_lora, component_of, write_lora
from tools.command import check_new
from tools.low_rank import Errors, Factors, Limits, decompose

logger = logging.getLogger(__name__)

_ROUNDING = 2.0**-11  # of float16, relative; 2^-25 of its smallest numbers, absolute


@torch.no_grad()
def extract(
    base: str,
    tuned: str,
    output: Path,
    *,
    rank: int = 32,
    conv_rank: int | None = None,
    energy: float | None = None,
    exact: bool = False,
    dtype: str = "fp16",
    device: str = "cpu",
) -> str:
    """Write a LoRA with the difference of two models; returns what of it is lost, in words.

    One component of both is in memory at a time, in float32. `conv_rank` also takes k x k
    convolutions; with `energy` a layer has only as many ranks as hold this part of its difference.
    Large layers are decomposed by random projections, unless `exact`; the error is measured. What
    is no more than float16's rounding is no difference.

    Raises:
        ValueError: the models are of different kinds or don't differ, or `output` exists.
    """
    check_new(output, suffix=".safetensors")
    limits = {False: Limits(rank=rank, energy=energy)}
    if conv_rank is not None:
        limits[True] = Limits(rank=conv_rank, energy=energy)
    shape = load(base, weights=False)
    _check_alike(shape, load(tuned, weights=False), base, tuned)
    errors, changes, rest = Errors(), {}, Rest()
    for number, component in enumerate(shape.components()):
        piece = "unet" if component == "unet" else f"text_encoder{f'_{number}' * (number > 1)}"
        before, after = (load(path, weights=[piece]) for path in (base, tuned))
        layers: dict[str, Any] = before.adapter_layers([component], conv=conv_rank is not None)
        modules = after.components()[component]
        for path, layer in layers.items():
            theirs: Any = modules.get_submodule(split_component(path)[1])
            change = _difference(layer.weight, theirs.weight)
            if change is None:
                continue
            change = change.to(device)
            of_layer = limits[is_spatial(layer) and conv_rank is not None]
            kept, lost = decompose(change, of_layer, exact=exact)
            name = kohya_name(before, path)
            changes[name] = Factors(kept.up.cpu(), kept.down.cpu(), kept.shape)
            errors.note(name, lost, float(change.square().sum()))
        rest.note(component, before.components()[component], modules, layers)
    if not changes:
        raise ValueError(f"{tuned}: no layer that a LoRA can change differs from {base}")
    rest.warn(sum(errors.whole.values()), conv=conv_rank is not None)
    told = f"{len(changes)} layers, {errors.describe()}"
    written = as_lora(changes, {component_of(name): float(rank) for name in changes})
    own = network_metadata(shape, module="networks.lora", rank="", alpha="", args={})
    write_lora(
        output,
        written,
        dtype=dtype,
        metadata={
            **own,
            **model_spec(shape, title=output.stem, kind="lora"),
            "ss_sd_model_name": model_name(base),
        },
        note=f"extracted by sd-trainer: {model_name(tuned)} without {model_name(base)}, {told}",
    )
    return f"{output}: {told}"


class Rest:
    """What differs between two models that is in no layer of an adapter."""

    def __init__(self) -> None:
        self.squares: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def note(
        self, component: str, before: nn.Module, after: nn.Module, layers: Mapping[str, Any]
    ) -> None:
        """Note the parameters of a component that aren't the weights of `layers`."""
        theirs = dict(after.named_parameters())
        for name, parameter in before.named_parameters():
            if f"{component}.{name.rpartition('.')[0]}" in layers and name.endswith(".weight"):
                continue
            change = _difference(parameter, theirs[name])
            if change is not None:
                kind = _kind(before.get_submodule(name.rpartition(".")[0]), name)
                self.squares[kind] = self.squares.get(kind, 0.0) + float(change.square().sum())
                self.counts[kind] = self.counts.get(kind, 0) + 1

    def warn(self, kept: float, *, conv: bool) -> None:
        """Say what a LoRA has no place for, beside layers whose squared norms sum up to `kept`."""
        whole = kept + sum(self.squares.values())
        for kind, squares in self.squares.items():
            advice = "; give --conv_rank" if kind == CONVOLUTIONS and not conv else ""
            logger.warning(
                "%d %s differ too, with %.2g of the whole difference's squared norm, and are not "
                "in the LoRA%s",
                *(self.counts[kind], kind, squares / whole, advice),
            )


CONVOLUTIONS = "weights of convolutions"


def _kind(module: nn.Module, name: str) -> str:
    if name.endswith("bias") and not isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return "biases"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if isinstance(module, nn.Conv2d):
        return CONVOLUTIONS
    return "weights of Linear layers" if isinstance(module, nn.Linear) else "normalisations"


def _difference(before: Tensor, after: Tensor) -> Tensor | None:
    """What was added, in float32; None where it is nothing, or float16's rounding."""
    change = after.float() - before.float()
    rounding = before.float().abs() * _ROUNDING + 2.0**-25
    return None if bool((change.abs() <= rounding).all()) else change


def _check_alike(before: Any, after: Any, base: str, tuned: str) -> None:
    """Check that two models have the same parameters."""
    first, second = dict(_shapes(before)), dict(_shapes(after))
    wrong = f"{tuned}: is no model made of {base}"
    if type(before) is not type(after):
        families = type(after).__name__, type(before).__name__
        raise ValueError(f"{wrong}: it is a {families[0]}, and that a {families[1]}")
    for path in first | second:
        found = [shapes.get(path, "not there") for shapes in (second, first)]
        if found[0] != found[1]:
            raise ValueError(f"{wrong}: {path} is {found[0]} here and {found[1]} there")


def _shapes(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for component, module in model.components().items():
        for name, parameter in module.named_parameters():
            yield f"{component}.{name}", tuple(parameter.shape)
