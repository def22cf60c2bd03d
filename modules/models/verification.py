"""Checking a written base model: what was trained number by number, the rest by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from modules.models.full_file import file_layout
from modules.models.layouts import V_PREDICTION, ZERO_SNR
from modules.models.original_names import Place, places, vae_places
from modules.models.portable import classic_name
from modules.verification import (
    Comparison,
    Verified,
    check_dtype,
    check_finite,
    check_names,
    check_shape,
)

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel
    from modules.models.model import Model

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def verify_folder(model: Model, directory: Path, *, dtype: torch.dtype) -> Verified:
    """Check every piece of a diffusers directory; one tensor at a time is in memory.

    Raises:
        ValueError: a name, a shape, a dtype or a trained number is not as it should be.
    """
    comparison, keys = Comparison(), 0
    for name, piece in model.pieces().items():
        if name.startswith("tokenizer"):
            continue
        is_text = name.startswith("text_encoder")
        file = directory / name / ("model.safetensors" if is_text else _WEIGHTS)
        live = text_tensors(piece) if is_text else piece.state_dict()
        if model.is_changed(name):
            keys += comparison.add_file(file, live, dtype=dtype, where=f"{name}: ")
        else:
            keys += _check_untrained(file, live, dtype=dtype, where=f"{name}: ")
    return comparison.result(keys=keys)


def verify_single_file(model: DiffusionModel, path: Path, *, dtype: torch.dtype) -> Verified:
    """Check a model in the original layout, whose names are mapped back to the module's.

    Beside the model's tensors a file has markers, and of text encoders what programs expect though
    they have no use for it.

    Raises:
        ValueError: as `verify_folder`.
    """
    layout, comparison = file_layout(model), Comparison()
    unused = tuple(p for name, p in layout.prefixes.items() if name.startswith("text_encoder"))
    with safe_open(path, framework="pt") as file:
        left = {key for key in file.keys() if key not in (V_PREDICTION, ZERO_SNR)}  # noqa: SIM118
        for name in layout.prefixes:
            piece = model.pieces()[name]
            where, live = places(name, piece, layout), piece.state_dict()
            _compare_places(comparison, file, where, live, dtype, model.is_changed(name))
            left -= {place.name for place in where.values()}
        check_names([key for key in left if not key.startswith(unused)], ())
        return comparison.result(keys=len(file.keys()))


def verify_vae_file(vae: Any, path: Path, *, dtype: torch.dtype) -> Verified:
    """Check a VAE that was written alone in the original layout.

    Raises:
        ValueError: as `verify_folder`.
    """
    comparison, live = Comparison(), vae.state_dict()
    where = vae_places(vae, live)
    with safe_open(path, framework="pt") as file:
        _compare_places(comparison, file, where, live, dtype, True)
        check_names(file.keys(), {place.name for place in where.values()})
        return comparison.result(keys=len(file.keys()))


def verify_vae_folder(vae: Any, directory: Path, *, dtype: torch.dtype) -> Verified:
    """Check a VAE's diffusers directory.

    Raises:
        ValueError: as `verify_folder`.
    """
    comparison = Comparison()
    keys = comparison.add_file(directory / _WEIGHTS, vae.state_dict(), dtype=dtype)
    return comparison.result(keys=keys)


def text_tensors(encoder: Any) -> dict[str, Tensor]:
    """A text encoder's tensors by the names that all programs know."""
    return {classic_name(encoder, key): value for key, value in encoder.named_parameters()}


def _compare_places(
    comparison: Comparison,
    file: Any,
    where: Mapping[str, Place],
    live: Mapping[str, Tensor],
    dtype: torch.dtype,
    is_changed: bool,
) -> None:
    """Compare a piece's tensors in a file of the original layout, or if unchanged their shapes."""
    keys = set(file.keys())
    for key, place in where.items():
        if place.name not in keys:
            raise ValueError(f"{place.name}: was to be written, and is missing")
        stored = file.get_tensor(place.name)
        check_shape(place.name, tuple(stored.shape), place.shape(tuple(live[key].shape)))
        check_dtype(place.name, stored.dtype, dtype if live[key].is_floating_point() else None)
        if is_changed:
            comparison.add_tensor(place.name, place.unpack(stored), live[key])
        else:
            check_finite(place.name, stored)


def _check_untrained(
    path: Path, live: Mapping[str, Tensor], *, dtype: torch.dtype, where: str
) -> int:
    """Check a file whose tensors are the checkpoint's, not those in memory."""
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        check_names(keys, live, where=where)
        for key in keys:
            stored = file.get_tensor(key)
            check_shape(where + key, tuple(stored.shape), tuple(live[key].shape))
            check_dtype(where + key, stored.dtype, dtype if stored.is_floating_point() else None)
            check_finite(where + key, stored)
    return len(keys)
