"""Which layer of a model each layer of an adapter file is for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modules.models.patterns import matches
from networks.adapter_kinds import width_of
from networks.keys import kohya_name, split_component
from networks.reading import read_layers

logger = logging.getLogger(__name__)

_FAMILIES = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "the refiner of SDXL"}
"""Numbers of a token in the text embedding -> the model."""

_OTHER_PREFIXES = {"text_encoders.0": ("lora_te", "lora_te1"), "text_encoders.1": ("lora_te2",)}


@dataclass(frozen=True)
class FoundLayer:
    """A layer of a file and the model's that it is for."""

    path: str
    base: Any
    tensors: Mapping[str, Tensor]


def layers_for(model: Any, path: Path) -> dict[str, FoundLayer]:
    """The layers of a file, by the name that we write, in the model's order.

    Those without effect in this model are left out, which is logged.

    Raises:
        ValueError: the file can't be read, is for another kind of model, or has a layer that the
            model doesn't have.
    """
    named = by_path(read_layers(path), model, where=path)
    idle = [own for own in named if any(matches(own, part) for part in model.idle_paths())]
    if idle:
        logger.info(
            "%s: %d of its layers have no effect in this model and are left out, first %s",
            *(path, len(idle), idle[0]),
        )
    found = {}
    for own, tensors in named.items():
        if own not in idle:
            found[kohya_name(model, own)] = FoundLayer(own, module_at(model, own), tensors)
    return found


def by_path(
    layers: Mapping[str, Mapping[str, Tensor]], model: Any, *, where: Path
) -> dict[str, Mapping[str, Tensor]]:
    """The layers of the file `where` by module path, in the model's order.

    Raises:
        ValueError: it is for another kind of model, or has a layer that the model doesn't have.
    """
    _check_family(where, layers, model)
    known = known_names(model)
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise ValueError(
            f"{where}: {unknown[0]} is no layer of this model ({type(model).__name__})"
            + (f", nor are {len(unknown) - 1} others" if unknown[1:] else "")
            + "; it is for another kind of model"
        )
    named = {known[name]: tensors for name, tensors in layers.items()}
    return {path: named[path] for path in dict.fromkeys(known.values()) if path in named}


def text_width(layers: Mapping[str, Mapping[str, Tensor]]) -> int | None:
    """Numbers of a token in the text embedding of the model that layers are for, if they tell."""
    return next((width_of(t) for n, t in layers.items() if n.endswith("_attn2_to_k")), None)


def module_at(model: Any, path: str) -> Any:
    """A layer of the model by its module path."""
    component, inner = split_component(path)
    return model.components()[component].get_submodule(inner)


def known_names(model: Any) -> dict[str, str]:
    """Every name that files have for a layer of the model -> its module path.

    That is with the names of diffusers and of the original UNet, with and without `text_model`, and
    with the prefixes of kohya-ss/sd-scripts, diffusers and LyCORIS.
    """
    names: dict[str, str] = {}
    for component, prefix in model.component_prefixes.items():
        prefixes = {prefix, *_OTHER_PREFIXES.get(component, ())}
        if component == "unet" or len(model.text_encoders) == 1:
            prefixes.add("lycoris")
        for inner, layer in model.components()[component].named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            for known in model.known_paths(component, inner):
                for start in prefixes:
                    name = f"{start}_{known.replace('.', '_')}"
                    names.setdefault(name, f"{component}.{inner}")
    return names


def _check_family(path: Path, layers: Mapping[str, Mapping[str, Tensor]], model: Any) -> None:
    """Check that a file is for models whose text embedding is as wide, with as many encoders."""
    own = getattr(getattr(model.denoiser, "config", None), "cross_attention_dim", None)
    given = text_width(layers)
    if given is not None and own is not None and given != own:
        raise ValueError(
            f"{path}: is for {_FAMILIES.get(given, 'another model')}, whose text embeddings have "
            f"{given} numbers; this is {_FAMILIES.get(own, 'one')} with {own}"
        )
    if len(model.text_encoders) < 2 and any(name.startswith("lora_te2_") for name in layers):
        raise ValueError(f"{path}: is for SDXL; this is a {type(model).__name__}")
