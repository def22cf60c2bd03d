"""Adapter files: layers of a network to .safetensors and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def write_layers(
    path: Path, layers: nn.ModuleDict, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write layers by their name in files, every tensor in `dtype`."""
    tensors = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in layers.state_dict().items()
    }
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def read_layers(path: Path, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors of a file by layer and by the rest of their key; `names` are the layers wanted.

    Raises:
        ValueError: the file can't be read, or holds other layers than those.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as .safetensors: {error}") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        if name not in names:
            known = next(iter(names), "none")
            raise ValueError(
                f"{path}: {key} belongs to no layer of this network (it has {known}, ...); "
                "check its targets, conv_rank and the base model"
            )
        found.setdefault(name, {})[rest] = tensor
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path}: has no tensors for {len(missing)} of {len(names)} layers, "
            f"first {missing[0]}; check the network's targets and conv_rank"
        )
    return found
