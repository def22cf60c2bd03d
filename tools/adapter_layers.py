"""What the tools for adapters share: layers of files as changes of weights, and back to a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.component import resolve
from modules.files import replacing
from modules.savers import DTYPES
from networks.adapter_kinds import kind_of
from networks.dora import weight_change
from networks.files import read_metadata, write_layers
from networks.peft_files import HEADER
from networks.resuming import restore
from tools.low_rank import Factors

Layer = Mapping[str, Tensor]

NOTE = "sd_trainer.note"
"""Metadata of what was done to a file, in words."""

_STALE = (
    *("sshs_", "modelspec.hash", "modelspec.title", "ss_network_"),
    "sd_trainer.",  # the receipt of the run that made the file
    HEADER,  # which diffusers would take for that of the new layers
)
"""How metadata begin that are of the file they stand in alone."""


def component_of(name: str) -> str:
    """The component of a layer by its name: `lora_unet`, `lora_te2`."""
    return "_".join(name.split("_", 2)[:2])


def is_of_text(name: str) -> bool:
    """Whether a layer is of a text encoder."""
    return component_of(name).startswith("lora_te") or "_text_model_" in name


def kind_name(tensors: Layer) -> str:
    """LoRA, LoHa, LoKr, or a DoRA of one of them."""
    kind = kind_of(tensors)
    name = "layer of a network of one's own" if kind is None else kind.name
    return f"DoRA ({name})" if "dora_scale" in tensors else name


def is_plain_lora(tensors: Layer) -> bool:
    """Whether a layer's change is the product of two small matrices and nothing else."""
    return kind_name(tensors) == "LoRA"


def factors_of(tensors: Layer) -> Factors:
    """The change of a LoRA, with its scale in `up`."""
    down, up = tensors["lora_down.weight"].float(), tensors["lora_up.weight"].float()
    scale = float(tensors["alpha"]) / len(down)
    return Factors(up.flatten(1) * scale, down.flatten(1), (len(up), *down.shape[1:]))


@torch.no_grad()
def change_of(tensors: Layer, base: Any, *, where: str, device: str) -> Tensor:
    """The change that a layer of any kind makes to the weight of `base`, float32, on `device`.

    Of a base without weights (on `meta`) the shape is enough, but for a DoRA.

    Raises:
        ValueError: it is of no known kind, or for a layer of another size.
    """
    kind = kind_of(tensors)
    if kind is None:
        raise ValueError(f"{where} is of no kind that is known here")
    layer = restore(resolve(kind.module)(), base, tensors, where=where).to(device)
    weight = base.weight if base.weight.is_meta else base.weight.to(device)
    change = weight_change(layer, weight)
    if change.shape != weight.shape:
        own, given = tuple(weight.shape), tuple(change.shape)
        raise ValueError(f"{where} is for a weight of {given}, this one has {own}")
    return change


def as_lora(changes: Mapping[str, Factors], alphas: Mapping[str, float]) -> dict[str, dict]:
    """Layers of a file, with one alpha for each component, as diffusers takes it.

    What is left of each layer's scale goes into `up`.
    """
    layers = {}
    for name, factors in changes.items():
        alpha, rank = alphas[component_of(name)], factors.rank
        ones = [1] * (len(factors.shape) - 2)
        layers[name] = {
            "lora_down.weight": factors.down.reshape(rank, *factors.shape[1:]),
            "lora_up.weight": (factors.up * (rank / alpha)).view(-1, rank, *ones),
            "alpha": torch.tensor(float(alpha)),
        }
    return layers


def common_ranks(changes: Mapping[str, Factors]) -> dict[str, float]:
    """The rank that most layers of each component have, which leaves their scale at 1."""
    counts: dict[str, Counter[int]] = {}
    for name, factors in changes.items():
        counts.setdefault(component_of(name), Counter())[factors.rank] += 1
    return {component: float(count.most_common(1)[0][0]) for component, count in counts.items()}


def show_ranks(ranks: Iterable[int]) -> str:
    """One rank, or the least and the greatest of several."""
    found = sorted(set(ranks))
    return str(found[0]) if len(found) == 1 else f"{found[0]}..{found[-1]}"


def kept_metadata(paths: Sequence[Path]) -> dict[str, str]:
    """What files say of themselves alike, without what is of their tensors alone.

    Raises:
        ValueError: they are for different kinds of models.
    """
    every = [{} if path.is_dir() else read_metadata(path) for path in paths]
    versions = {
        path.name: own["ss_base_model_version"]
        for path, own in zip(paths, every, strict=True)
        if "ss_base_model_version" in own
    }
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name} for {version}" for name, version in versions.items())
        raise ValueError(f"they are for different base models: {told}")
    first, *others = every
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others) and not key.startswith(_STALE)
    }


def write_lora(
    output: Path,
    layers: Mapping[str, Layer],
    *,
    dtype: str,
    metadata: Mapping[str, str],
    note: str,
) -> None:
    """Write the layers of a LoRA, atomically, with ranks and alpha as readers want them.

    `note` is what was done, in words.
    """
    title = {"modelspec.title": output.stem} if "modelspec.sai_model_spec" in metadata else {}
    with replacing(output) as temporary:
        write_layers(
            temporary,
            layers,
            dtype=DTYPES[dtype],
            metadata={
                **metadata,
                **describe_ranks(layers),
                **title,
                "ss_output_name": output.stem,
                NOTE: note,
            },
        )


def describe_ranks(layers: Mapping[str, Layer]) -> dict[str, str]:
    """The `ss_network_*` values of a LoRA file; "Dynamic" is a rank that differs by layer."""
    ranks: dict[bool, set[int]] = {False: set(), True: set()}
    alphas: Counter[float] = Counter()
    for tensors in layers.values():
        down = tensors["lora_down.weight"]
        ranks[down.dim() == 4 and tuple(down.shape[2:]) != (1, 1)].add(len(down))
        alphas[float(tensors["alpha"])] += 1
    shown = {
        spatial: str(*found) if len(found) == 1 else "Dynamic" for spatial, found in ranks.items()
    }
    alpha = f"{alphas.most_common(1)[0][0]:g}"
    is_decomposed = any("dora_scale" in tensors for tensors in layers.values())
    args = {"conv_dim": shown[True], "conv_alpha": alpha} if ranks[True] else {}
    if is_decomposed:
        args |= {"algo": "locon", "dora_wd": "True"}
    return {
        "ss_network_module": "lycoris.kohya" if is_decomposed else "networks.lora",
        "ss_network_dim": shown[not ranks[False]],
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(args),
    }
