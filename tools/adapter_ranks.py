"""LoRAs with fewer ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from modules.savers import DTYPES
from networks.reading import read_layers
from tools.adapter_layers import (
    Layer,
    as_lora,
    component_of,
    factors_of,
    kept_metadata,
    kind_name,
    show_ranks,
    write_lora,
)
from tools.command import check_new
from tools.low_rank import Errors, Limits, shorten


@torch.no_grad()
def resize(
    input: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | None = None,
    dtype: str | None = None,
    device: str = "cpu",
) -> str:
    """Write a LoRA with fewer ranks, by layer as many as the limits allow; returns the error.

    Layers that keep their rank are not touched; the alphas stay, the rest of the scale goes into
    `lora_up`. The magnitudes of a DoRA are kept.

    Raises:
        ValueError: the file is no LoRA, a limit is none, or `output` exists.
    """
    check_new(output, suffix=".safetensors")
    if (rank, energy, threshold) == (None, None, None):
        raise ValueError("there is nothing to do; give rank, energy or threshold")
    limits = Limits(rank=rank, energy=energy, threshold=threshold)
    layers = read_layers(input)
    others = {kind_name(t) for t in layers.values() if "lora_down.weight" not in t}
    if others:
        raise ValueError(
            f"{input}: is a {' and '.join(sorted(others))}, whose rank is no rank of its change; "
            "make a LoRA of it with tools/merge.py, --rank and --model"
        )
    alphas = {c: _common_alpha(layers, c) for c in {component_of(name) for name in layers}}
    errors, written = Errors(), {}
    for name, tensors in layers.items():
        own = factors_of({key: tensor.to(device) for key, tensor in tensors.items()})
        kept, lost, whole = shorten(own, limits)
        errors.note(name, lost, whole)
        if kept is own and float(tensors["alpha"]) == alphas[component_of(name)]:
            written[name] = dict(tensors)
            continue
        written |= as_lora({name: kept}, alphas)
        if "dora_scale" in tensors:
            written[name]["dora_scale"] = tensors["dora_scale"]
    before, after = (
        show_ranks(len(tensors["lora_down.weight"]) for tensors in each.values())
        for each in (layers, written)
    )
    told = f"ranks {before} -> {after}, {errors.describe()}"
    write_lora(
        output,
        written,
        dtype=dtype or _dtype_of(layers),
        metadata=kept_metadata([input]),
        note=f"{input.name} resized by sd-trainer: {told}",
    )
    return f"{output}: {len(written)} layers, {told}"


def _common_alpha(layers: Mapping[str, Layer], component: str) -> float:
    """The alpha that most layers of a component have."""
    alphas = [float(t["alpha"]) for name, t in layers.items() if component_of(name) == component]
    return Counter(alphas).most_common(1)[0][0]


def _dtype_of(layers: Mapping[str, Layer]) -> str:
    """The precision of a file's layers by our name; fp32 for one that we don't write."""
    own = next(iter(layers.values()))["lora_down.weight"].dtype
    return next((name for name, dtype in DTYPES.items() if dtype == own), "fp32")
