"""Tucker decompositions of convolutions (LyCORIS' `use_tucker`), multiplied out into plain factors.

A core (rank, rank, k, k) stands between the factors; it goes into the one that is applied first.
The result is exact, but for rounding, and has the same rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_FACTORS = {"hada_t1": "hada_w1", "hada_t2": "hada_w2", "lokr_t2": "lokr_w2"}
_CORES = {"lora_mid.weight", *_FACTORS}


def without_core(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer in plain form, in float32 where there was a core; else as they are."""
    if not _CORES & tensors.keys():
        return dict(tensors)
    found = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    if "lora_mid.weight" in found:
        core, down = found.pop("lora_mid.weight"), found["lora_down.weight"]
        found["lora_down.weight"] = _applied(core, down)
    for core_name, factor in _FACTORS.items():
        if core_name in found:  # the factors are transposed then: (rank, out), (rank, in)
            core = found.pop(core_name)
            found[f"{factor}_a"] = found[f"{factor}_a"].T.contiguous()
            found[f"{factor}_b"] = _applied(core, found[f"{factor}_b"]).flatten(1)
    return found


def _applied(core: Tensor, factor: Tensor) -> Tensor:
    """The core (a, b, k, k) behind a factor (b, in[, 1, 1]): (a, in, k, k)."""
    return torch.einsum("abhw,bi->aihw", core, factor.flatten(1)).contiguous()
