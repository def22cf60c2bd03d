"""Adapters under kohya's names, and as the one file of diffusers with PEFT's names.

A layer's path can't be told from a kohya name alone, where dots have become underscores. The table
for it comes from the family's modules, which are made without weights; which family it is the file
tells by its names and sizes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.command import check_new
from tools.containers import in_dtype, write_file
from tools.peft_directories import peft_config, peft_tensors, usual, write_directory

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

    Alphas and ranks of each layer stand in the header. An `output` without an ending becomes
    PEFT's directories `unet`, `text_encoder` and `text_encoder_2`, of LoHas too. `model` is the
    base it is for, if that is none of the published sizes.

    Raises:
        ValueError: it is of another kind, PEFT can't express it, or it is for another model.
    """
    check_new(output)
    layers, base = _open(source, model)
    kinds = ("LoRA",) if output.suffix else ("LoRA", "LoHa")
    pieces = _by_piece(layers)
    configs = {piece: peft_config(own, source, kinds=kinds) for piece, own in pieces.items()}
    tensors = {
        piece: {path: peft_tensors(layer) for path, layer in own.items()}
        for piece, own in pieces.items()
    }
    told = _metadata(source)
    if output.suffix:
        return _write_pipeline(output, tensors, configs, told, base=base, dtype=dtype)
    return sum(
        write_directory(output / piece, own, configs[piece], told, dtype=dtype)
        for piece, own in tensors.items()
    )


def to_kohya(
    source: Path, output: Path, *, model: str | None = None, dtype: str | None = None
) -> int:
    """Write an adapter of any form under kohya's names; returns its tensors.

    Factors stay as they are, so that alphas may differ between layers. `model` is as in `to_peft`.

    Raises:
        ValueError: it is no adapter that can be read, or is for another model.
    """
    from networks.adapter_kinds import rank_of
    from networks.keys import kohya_name, network_metadata
    from networks.peft_files import HEADER

    check_new(output)
    layers, base = _open(source, model)
    tensors = {
        f"{kohya_name(base, path)}.{key}": in_dtype(key, tensor, dtype)
        for path, layer in layers.items()
        for key, tensor in layer.items()
    }
    told = network_metadata(
        base,
        module="networks.lora",
        rank=_common(rank_of(layer) for layer in layers.values()),
        alpha=f"{usual(float(layer['alpha']) for layer in layers.values()):g}",
        args={},
    )
    algorithm = _algorithm(layers)
    if algorithm:
        told |= {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(algorithm)}
    metadata = {**told, **_metadata(source)}
    metadata.pop(HEADER, None)
    write_file(output, tensors, metadata)
    return len(tensors)


def _write_pipeline(
    output: Path,
    pieces: Mapping[str, Layers],
    configs: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str],
    *,
    base: Any,
    dtype: str | None,
) -> int:
    """Write the file that diffusers' pipelines save, with the configs in its header."""
    from networks.peft_files import HEADER

    if any(config["use_dora"] for piece, config in configs.items() if piece != "unet"):
        logger.warning(
            "%s: diffusers 0.42 leaves out the magnitudes of text encoders, its own too", output
        )
    components = {piece: component for component, piece in _PIECES.items()}
    tensors: dict[str, Tensor] = {}
    for piece, layers in pieces.items():
        for path, own in layers.items():
            name = path if piece == "unet" else base.classic_path(components[piece], path)
            tensors |= {f"{piece}.{name}.{k}": in_dtype(k, t, dtype) for k, t in own.items()}
    header = {
        f"{piece}.{key}": value
        for piece, config in configs.items()
        for key, value in config.items()
        if key != "peft_type"  # which no constructor takes
    }
    write_file(output, tensors, {**metadata, HEADER: json.dumps(header, sort_keys=True)})
    return len(tensors)


def _by_piece(layers: Layers) -> dict[str, dict[str, Mapping[str, Tensor]]]:
    """Layers by the pipeline's piece and by their path in it."""
    found: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for component, piece in _PIECES.items():
        start = f"{component}."
        own = {p.removeprefix(start): t for p, t in layers.items() if p.startswith(start)}
        if own:
            found[piece] = own
    return found


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


def _algorithm(layers: Layers) -> dict[str, str]:
    """LyCORIS' arguments of what isn't a plain LoRA."""
    from networks.adapter_kinds import kind_of

    first = next(iter(layers.values()))
    kind, scale = kind_of(first), first.get("dora_scale")
    algorithm = "" if kind is None else kind.name.lower()
    if scale is None:
        return {} if algorithm == "lora" else {"algo": algorithm}
    algorithm = "locon" if algorithm == "lora" else algorithm
    rows = len(scale) > 1
    return {"algo": algorithm, "dora_wd": "True", "wd_on_output": str(rows)}


def _metadata(source: Path) -> dict[str, str]:
    from networks.files import read_metadata
    from networks.peft_files import parts_of

    return read_metadata(next(parts_of(source)).file)


def _common(values: Iterable[int]) -> str:
    """What all have; "Dynamic" if they differ."""
    found = {str(value) for value in values}
    return found.pop() if len(found) == 1 else "Dynamic"
