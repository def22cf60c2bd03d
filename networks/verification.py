"""Checking a written adapter: its names, its shapes, and the change of the weights it describes.

The file is read again, and what its tensors make of each weight is computed by the formulas that
readers use (`networks/closed_forms.py`), not by the layers that were trained. Factors are rounded
to the file's precision, so a change may be off by what that rounding of its factors can amount to
at most, number by number: f(|t| + r) - f(|t|) for factors t and their rounding r, since every
formula f is a sum of products.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from modules.verification import (
    Comparison,
    Verified,
    check_dtype,
    check_names,
    relaxed,
    rounding,
)
from networks.closed_forms import Tensors, decomposed, direction_of, norms_like
from networks.dora import weight_change
from networks.key_rules import component_of, is_known_layer, shape_fault, suffix_fault
from networks.keys import family_of
from networks.layer import AdapterLayer

if TYPE_CHECKING:
    from networks.base import Adapter

_SUMS = 1e-5
"""Share of the sum of all products' magnitudes that float32 may lose in adding them up."""
_EXACT = ("alpha", "dora_scale")  # may stay in float32


def verify_adapter(network: Adapter, path: Path, *, dtype: torch.dtype) -> Verified:
    """Check a file of an adapter's layers; one layer at a time is in memory, on the live device.

    Layers beside the targets came from a file of another program, whatever it called them.

    Raises:
        ValueError: a name is unknown or missing, a tensor is not finite, of another dtype or shape,
            or a number of it or of the layer's change is not the live one; names it.
    """
    layers, written = dict(network._named_layers()), network._as_written()
    version = family_of(network._model)
    comparison = Comparison()
    with safe_open(path, framework="pt") as file, _exact_products(), torch.no_grad():
        keys = list(file.keys())
        stored = _by_layer({key: tuple(file.get_slice(key).get_shape()) for key in keys})
        check_names(stored, layers)
        alphas: dict[str, tuple[float, str]] = {}
        for name, shapes in stored.items():
            live = layers[name]
            weight = network._base[name].weight.to(next(live.parameters()).device)
            is_known = suffix_fault(live.state_dict()) is None  # else it has no formula
            if is_known:
                known_by = None if name in network._beside else version
                _check_layer(name, shapes, tuple(weight.shape), known_by)
            check_names(shapes, written[name], where=f"{name}.")
            tensors = {own: file.get_tensor(f"{name}.{own}") for own in shapes}
            for own, tensor in tensors.items():
                key = f"{name}.{own}"
                is_exact = own in _EXACT and tensor.dtype == torch.float32
                check_dtype(key, tensor.dtype, None if is_exact else dtype)
                comparison.add_tensor(key, tensor, written[name][own])
            if is_known:
                _check_alpha(name, float(tensors["alpha"]), alphas)
                _compare(comparison, name, tensors, live, weight)
    return comparison.result(keys=len(keys))


def _compare(
    comparison: Comparison, name: str, stored: Tensors, live: AdapterLayer, weight: Tensor
) -> None:
    """Compare the change that a layer's tensors make with that of the live layer."""
    formula = direction_of(stored)
    assert formula is not None, "its names are known"
    exact = {"alpha": stored["alpha"].float()}  # stays where it is: it is a number
    factors = {own: t for own, t in stored.items() if own not in _EXACT}
    found = {own: t.to(weight.device).float() for own, t in factors.items()}
    sizes = {own: t.abs() for own, t in found.items()}
    rounded = {own: t + relaxed(rounding(t, stored[own].dtype)) for own, t in sizes.items()}
    change = formula({**found, **exact}).reshape(weight.shape)
    allowed = formula({**rounded, **exact}).reshape(weight.shape)
    allowed.sub_(formula({**sizes, **exact}).reshape(weight.shape), alpha=1 - _SUMS)
    noise = None
    if "dora_scale" in stored:
        whole, magnitudes = weight.float(), stored["dora_scale"].to(weight.device).float()
        moved = whole + change
        norms = norms_like(magnitudes, moved)
        result = decomposed(whole, change, magnitudes)
        # A step dV turns V / ||V|| by at most (dV + V ||dV|| / ||V||) / ||V||.
        turned = allowed + moved.abs() * norms_like(magnitudes, allowed) / norms
        # W' - W is a small difference of two weights, which float32 rounds.
        noise = (result.abs() + whole.abs()) * (8 * torch.finfo(torch.float32).eps)
        allowed = relaxed(turned) * (magnitudes / norms).abs() + noise
        change = result - whole
    comparison.add(name, change, weight_change(live, weight), allowed=allowed, noise=noise)


def _by_layer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        name, _, own = key.partition(".")
        found.setdefault(name, {})[own] = shape
    return found


def _check_layer(
    name: str, shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...], version: str | None
) -> None:
    if not is_known_layer(name, version):
        raise ValueError(f"{name}: is no layer that readers of {version} files know")
    fault = suffix_fault(shapes) or shape_fault(shapes, weight)
    if fault:
        raise ValueError(f"{name}: {fault}")


def _check_alpha(name: str, alpha: float, seen: dict[str, tuple[float, str]]) -> None:
    """Check that a component has one alpha: diffusers takes the most frequent for all layers."""
    first, other = seen.setdefault(component_of(name)[0], (alpha, name))
    if alpha != first:
        raise ValueError(f"{name}.alpha: is {alpha:g} where {other} has {first:g}")


@contextmanager
def _exact_products():
    """Products in float32 as such, where training may let a GPU round what it multiplies."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
