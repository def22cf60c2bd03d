"""Modules made without values, checked against the tensors of a file, and filled with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from modules.models.layouts import Shapes
from modules.models.original_names import Place


def make_module(cls: Any, config: Mapping[str, Any], *, weights: bool) -> Any:
    """A diffusers or transformers module without values: on `meta`, buffers too if it stays so."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False) if weights else torch.device("meta"):
        if hasattr(cls, "load_config"):
            return cls.from_config(config).eval()
        return cls(cls.config_class(**config)).eval()


def check_tensors(shapes: Shapes, module: Any, where: Mapping[str, Place], path: str) -> None:
    """Check that a file has every tensor of a module in its shape.

    Raises:
        ValueError: names the first that is missing or has another shape.
    """
    own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    missing = [place.name for place in where.values() if place.name not in shapes]
    if missing:
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise ValueError(f"{path}: the file is incomplete, it has no {missing[0]}{others}")
    for key, place in where.items():
        wanted = place.shape(own[key])
        if shapes[place.name] not in (wanted, own[key]):
            raise ValueError(
                f"{path}: {place.name} has shape {shapes[place.name]}, not {wanted}; the model is "
                "of another size than those published"
            )


def fill(module: Any, where: Mapping[str, Place], read: Callable[[str], Tensor]) -> None:
    """Give a module its tensors in float32, each with memory of its own."""
    tensors = {}
    for key, place in where.items():
        own = place.unpack(read(place.name))
        tensors[key] = own.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(tensors, assign=True)
