"""PEFT's tensors and configs of an adapter's layers, and its directories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.files import write_atomically
from tools.containers import in_dtype, write_file

if TYPE_CHECKING:
    from torch import Tensor

_START = "base_model.model."
_TYPES = {"LoRA": "LORA", "LoHa": "LOHA"}


def peft_config(
    layers: Mapping[str, Mapping[str, Tensor]], source: Path, *, kinds: Sequence[str]
) -> dict[str, Any]:
    """The config of one piece, whose layers of `source` stand by module path; so do its patterns.

    Raises:
        ValueError: a layer is none of `kinds`, or PEFT has no such DoRA.
    """
    from networks.adapter_kinds import kind_of, rank_of

    found = {path: kind_of(layer) for path, layer in layers.items()}
    for path, kind in found.items():
        if kind is None or kind.name not in kinds or kind != next(iter(found.values())):
            what = "of another kind" if kind is None else f"a {kind.name}"
            raise ValueError(f"{source}: {path} is {what}; {_allowed(kinds)}")
    _check_magnitudes(layers, source)
    ranks = {path: rank_of(layer) for path, layer in layers.items()}
    alphas = {path: float(layer["alpha"]) for path, layer in layers.items()}
    rank, alpha = usual(ranks.values()), usual(alphas.values())
    kind = next(iter(found.values()))
    assert kind is not None
    is_lora = kind.name == "LoRA"
    return {
        "peft_type": _TYPES[kind.name],
        "r": rank,
        "lora_alpha" if is_lora else "alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": list(layers),
        **({"use_dora": any("dora_scale" in t for t in layers.values())} if is_lora else {}),
    }


def peft_tensors(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors under PEFT's names."""
    if "lora_down.weight" not in layer:
        return {key: tensor for key, tensor in layer.items() if key != "alpha"}
    down = layer["lora_down.weight"]
    found = {"lora_A.weight": down, "lora_B.weight": layer["lora_up.weight"]}
    if "dora_scale" in layer:
        rows = layer["dora_scale"].flatten()
        found["lora_magnitude_vector"] = rows if down.dim() == 2 else rows.view(1, -1, 1, 1)
    return found


def usual(values: Iterable[Any]) -> Any:
    """The value that most have."""
    return Counter(values).most_common(1)[0][0]


def write_directory(
    folder: Path,
    layers: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    dtype: str | None,
) -> int:
    """Write one piece's layers, PEFT's tensors by module path; returns how many tensors."""
    from networks.peft_files import CONFIG, WEIGHTS

    tensors = {
        f"{_START}{path}.{key}": in_dtype(key, tensor, dtype)
        for path, own in layers.items()
        for key, tensor in own.items()
    }
    write_file(folder / WEIGHTS[0], tensors, metadata)
    write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return len(tensors)


def _check_magnitudes(layers: Mapping[str, Mapping[str, Tensor]], source: Path) -> None:
    for path, layer in layers.items():
        scale = layer.get("dora_scale")
        if scale is None:
            continue
        if "lora_up.weight" not in layer:
            raise ValueError(f"{source}: {path} has magnitudes, which PEFT knows of LoRA only")
        if scale.shape[0] != len(layer["lora_up.weight"]):
            raise ValueError(
                f"{source}: {path} has magnitudes of input channels, which PEFT doesn't know; "
                "train with dora: output for it"
            )
    if len({"dora_scale" in layer for layer in layers.values()}) > 1:
        raise ValueError(f"{source}: some of its layers are DoRAs, and PEFT takes all or none")


def _allowed(kinds: Sequence[str]) -> str:
    if len(kinds) == 1:
        return f"diffusers reads {kinds[0]} only; a directory of PEFT's may be of LoHas"
    return f"PEFT's directories can be written of one kind: {' or '.join(kinds)}"
