"""A whole model written as one .safetensors in the original layout, which other programs load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modules.models.layouts import V_PREDICTION, ZERO_SNR, Layout, file_layout
from modules.models.model_spec import model_spec
from modules.models.original_names import pack, places
from modules.models.unpublished import CONFIGS_KEY, unpublished_configs

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


def save_single_file(
    model: DiffusionModel,
    path: Path,
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write every piece in `dtype`, with what marks the prediction type.

    What was not trained is read again from the checkpoint, as for a diffusers directory.

    Raises:
        ValueError: models of this family can't be written so.
    """
    from safetensors.torch import save_file

    layout = file_layout(model)
    tensors = file_tensors(model, dtype=dtype)
    described = {**model_spec(model, title=path.stem), **metadata, "format": "pt"}
    configs = unpublished_configs(model.pieces(), model.scheduler_config(), layout)
    if configs:
        described[CONFIGS_KEY] = json.dumps(configs, ensure_ascii=False)
    save_file(tensors, path, metadata=described)


def file_tensors(
    model: DiffusionModel, *, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """The tensors of a model by their names in a file."""
    layout, scheduler = file_layout(model), model.scheduler_config()
    tensors: dict[str, Tensor] = {}
    for name in layout.prefixes:
        tensors |= _piece_tensors(name, model, layout, dtype, device)
    if scheduler.get("prediction_type") == "v_prediction":
        tensors[V_PREDICTION] = torch.tensor([])
    if scheduler.get("rescale_betas_zero_snr"):
        tensors[ZERO_SNR] = torch.tensor([])
    return tensors


def _piece_tensors(
    name: str, model: DiffusionModel, layout: Layout, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """What the file has of a piece."""
    module = model.as_trained(name)
    own = {key: tensor.detach().to(device, dtype) for key, tensor in module.state_dict().items()}
    found = pack(own, places(name, module, layout))
    if not name.startswith("text_encoder"):
        return found
    unread = getattr(model.checkpoint, "unread", None)  # of a single file
    kept = unread(name, module) if unread is not None else {}
    for key, tensor in _unused(name, module, found, layout):
        if tensor.is_floating_point():
            found[key] = kept.get(key, tensor).to(dtype, copy=True)
        else:
            found[key] = tensor
    return found


def _unused(
    name: str, module: Any, found: Mapping[str, Tensor], layout: Layout
) -> Iterator[tuple[str, Tensor]]:
    """What programs expect of a text encoder's tensors though they have no use for it.

    These are the numbers of the positions; of OpenCLIP a scale, and for SD2, whose last but one
    layer gives the output, a last layer and a projection.
    """
    prefix, config = layout.prefixes[name], module.config
    if name not in layout.open_clip:
        positions = torch.arange(config.max_position_embeddings)[None]
        yield f"{prefix}text_model.embeddings.position_ids", positions
        return
    yield f"{prefix}logit_scale", torch.tensor(math.log(100))
    if f"{prefix}text_projection" in found:
        return
    yield f"{prefix}text_projection", torch.eye(config.hidden_size)
    count = config.num_hidden_layers
    block = f"{prefix}transformer.resblocks."
    for key in [key for key in found if key.startswith(f"{block}{count - 1}.")]:
        yield f"{block}{count}.{key.removeprefix(f'{block}{count - 1}.')}", found[key]
