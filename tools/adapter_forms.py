"""Adapters under kohya's names, and as the one file of diffusers with PEFT's names.

A layer's path can't be told from a kohya name alone, where dots have become underscores. The table
for it comes from the family's modules, which are made without weights; which family it is the file
tells by its names and sizes.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.command import check_new
from tools.containers import in_dtype, write_file

if TYPE_CHECKING:
    from torch import Tensor

    Layers = Mapping[str, Mapping[str, Tensor]]

logger = logging.getLogger(__name__)

_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_PIECES = {
    "unet": "unet",
    "text_encoders.0": "text_encoder",
    "text_encoders.1": "text_encoder_2",
}


def is_kohya(names: Iterable[str]) -> bool:
    """Whether keys are in kohya's form."""
    from networks.foreign_names import split_key

    keys = [split_key(name) for name in names]
    return any(key is not None and not key.piece for key in keys)


def is_peft(names: Iterable[str]) -> bool:
    """Whether keys are in one of diffusers' or PEFT's forms."""
    from networks.foreign_names import split_key

    return all(split_key(name) is not None for name in names)


def to_peft(
    source: Path, output: Path, *, model: str | None = None, dtype: str | None = None
) -> int:
    """Write a LoRA as diffusers does, which `load_lora_weights` reads; returns its tensors.

    Alphas and ranks of each layer stand in the header. `model` is the base it is for, if that is
    none of the published sizes.

    Raises:
        ValueError: it is no LoRA, PEFT can't express it, or it is for another model.
    """
    from networks.peft_files import HEADER

    check_new(output)
    layers, base = _open(source, model)
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component, piece in _PIECES.items():
        own = {p: t for p, t in layers.items() if p.startswith(f"{component}.")}
        if not own:
            continue
        inner = {path.removeprefix(f"{component}."): layer for path, layer in own.items()}
        if piece != "unet" and any("dora_scale" in layer for layer in inner.values()):
            logger.warning(
                "%s: diffusers 0.42 leaves out the magnitudes of text encoders, its own too", output
            )
        config |= {f"{piece}.{k}": v for k, v in _peft_config(inner, source).items()}
        for path, layer in inner.items():
            start = f"{piece}.{base.classic_path(component, path) if piece != 'unet' else path}"
            tensors |= {f"{start}.{key}": tensor for key, tensor in _peft_tensors(layer).items()}
    metadata = {**_metadata(source), HEADER: json.dumps(config, sort_keys=True)}
    write_file(output, {k: in_dtype(k, t, dtype) for k, t in tensors.items()}, metadata)
    return len(tensors)


def to_kohya(
    source: Path, output: Path, *, model: str | None = None, dtype: str | None = None
) -> int:
    """Write an adapter of any form under kohya's names; returns its tensors.

    Factors stay as they are, so that alphas may differ between layers. `model` is as in `to_peft`.

    Raises:
        ValueError: it is no adapter that can be read, or is for another model.
    """
    from networks.adapter_kinds import kind_of, rank_of
    from networks.keys import kohya_name, network_metadata
    from networks.peft_files import HEADER

    check_new(output)
    layers, base = _open(source, model)
    tensors = {
        f"{kohya_name(base, path)}.{key}": in_dtype(key, tensor, dtype)
        for path, layer in layers.items()
        for key, tensor in layer.items()
    }
    kind = kind_of(next(iter(layers.values())))
    name = "" if kind is None else kind.name.lower()
    told = network_metadata(
        base,
        module="networks.lora" if name == "lora" else "lycoris.kohya",
        rank=_common(rank_of(layer) for layer in layers.values()),
        alpha=f"{_usual(float(layer['alpha']) for layer in layers.values()):g}",
        args={} if name == "lora" else {"algo": name},
    )
    metadata = {**told, **_metadata(source)}
    metadata.pop(HEADER, None)
    write_file(output, tensors, metadata)
    return len(tensors)


def _open(source: Path, model: str | None) -> tuple[Layers, Any]:
    """The layers of an adapter by module path, and the model that they are for, without weights."""
    from modules.models import load
    from modules.models.published import published_model
    from networks.matching import by_path
    from networks.reading import read_layers

    layers = read_layers(source)
    base = published_model(_family(layers, source)) if model is None else load(model, weights=False)
    try:
        return by_path(layers, base, where=source), base
    except ValueError as error:
        advice = "" if model else "; give the base model that it is for with --model"
        raise ValueError(f"{error}{advice}") from error


def _family(layers: Layers, source: Path) -> str:
    """Which of the published models an adapter is for; the names of SD1 and SD2 are the same."""
    from networks.matching import text_width

    if any("_add_k_proj" in name for name in layers):
        raise ValueError(f"{source}: is for DeepFloyd IF; give a model of it with --model")
    width = text_width(layers)
    if width is not None and width not in _BY_WIDTH:
        raise ValueError(
            f"{source}: is for text embeddings of {width} numbers, which no published model has; "
            "give the base model that it is for with --model"
        )
    if width is not None:
        return _BY_WIDTH[width]
    return "sdxl" if any(name.startswith(("lora_te1_", "lora_te2_")) for name in layers) else "sd1"


def _peft_tensors(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    down = layer["lora_down.weight"]
    found = {"lora_A.weight": down, "lora_B.weight": layer["lora_up.weight"]}
    if "dora_scale" in layer:
        rows = layer["dora_scale"].flatten()
        found["lora_magnitude_vector"] = rows if down.dim() == 2 else rows.view(1, -1, 1, 1)
    return found


def _peft_config(layers: Layers, source: Path) -> dict[str, Any]:
    """PEFT's config of one piece; patterns are whole paths."""
    from networks.adapter_kinds import kind_of

    for path, layer in layers.items():
        kind = kind_of(layer)
        if kind is None or kind.name != "LoRA":
            what = "of another kind" if kind is None else f"a {kind.name}"
            raise ValueError(f"{source}: {path} is {what}; diffusers reads LoRA only")
        if "dora_scale" in layer and layer["dora_scale"].shape[0] != len(layer["lora_up.weight"]):
            raise ValueError(
                f"{source}: {path} has magnitudes of input channels, which PEFT doesn't know; "
                "train with dora: output for it"
            )
    decomposed = {"dora_scale" in layer for layer in layers.values()}
    if len(decomposed) > 1:
        raise ValueError(f"{source}: some of its layers are DoRAs, and PEFT takes all or none")
    ranks = {path: len(layer["lora_down.weight"]) for path, layer in layers.items()}
    alphas = {path: float(layer["alpha"]) for path, layer in layers.items()}
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": True in decomposed,
    }


def _metadata(source: Path) -> dict[str, str]:
    from networks.files import read_metadata
    from networks.peft_files import parts_of

    return read_metadata(next(parts_of(source)).file)


def _common(values: Iterable[int]) -> str:
    """What all have; "Dynamic" if they differ."""
    found = {str(value) for value in values}
    return found.pop() if len(found) == 1 else "Dynamic"


def _usual(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]
