"""Layers of a network made of a file's tensors, and what to say of the differences."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from networks.adapter_kinds import kind_of
from networks.description import warn_of_differences
from networks.dora import take_over
from networks.layer import AdapterLayer

if TYPE_CHECKING:
    from networks.base import Adapter

logger = logging.getLogger(__name__)


def restore(
    network: Adapter, base: Any, tensors: Mapping[str, Tensor], *, where: str
) -> AdapterLayer:
    """A layer of `network`'s kind that holds a file's tensors, in float32.

    Raises:
        ValueError: they are of another kind, or for a layer of another size.
    """
    layer_class, name = network.layer_class, type(network).__name__
    kind = kind_of(tensors)
    try:
        rank = layer_class.rank_of(tensors)
    except KeyError as error:
        if kind is None:
            raise ValueError(f"{where} is no {name} of this layer: it has no {error}") from error
        raise ValueError(
            f"{where} is a {kind.name}, not a {name}; write `module: {kind.module}`"
        ) from error
    floats = {key: tensor.float() for key, tensor in tensors.items()}
    floats.setdefault("alpha", torch.tensor(float(rank)))
    try:
        layer = layer_class.from_shapes(base, floats)
        if "dora_scale" in floats:
            floats["dora_scale"] = take_over(layer, floats["dora_scale"], base.weight)
        own = layer.state_dict()
        layer.load_state_dict({k: _as_shaped(t, own.get(k)) for k, t in floats.items()})
    except (LookupError, ArithmeticError, RuntimeError, ValueError) as error:  # of odd shapes
        raise ValueError(f"{where} is no {name} of this layer: {error}") from error
    return layer


def note_differences(
    path: Path, targets: Mapping[str, AdapterLayer], read: Mapping[str, AdapterLayer]
) -> None:
    """Say where a file's layers are others than the config's: in kind, more, or fewer."""
    warn_of_differences(path, targets, {n: layer for n, layer in read.items() if n in targets})
    beside = [name for name in read if name not in targets]
    if beside:
        logger.info(
            "%s: %d of its %d layers are beside the targets, first %s; they are applied and saved "
            "again, but not trained (targets and conv_rank say what is)",
            *(path, len(beside), len(read), beside[0]),
        )
    missing = [name for name in targets if name not in read]
    if missing:
        logger.info(
            "%s: has no layers for %d of %d targets, first %s; they begin as new ones, without "
            "effect",
            *(path, len(missing), len(targets), missing[0]),
        )


def _as_shaped(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A tensor in the layer's shape if that has the same rows: a 1x1 convolution is a Linear."""
    if own is not None and tensor.shape[:2] == own.shape[:2] and tensor.numel() == own.numel():
        return tensor.reshape(own.shape)
    return tensor
