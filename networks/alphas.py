"""One alpha for all layers of a component in a file, whatever each layer's scale is.

diffusers takes the most frequent alpha of a file's UNet or text encoder for all of its layers, so
that a file has one, and what is left of a layer's scale is multiplied into one of its factors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from networks.keys import split_component
from networks.layer import AdapterLayer


def common_alphas(
    layers: Iterable[tuple[str, AdapterLayer]], paths: Mapping[str, str]
) -> dict[str, float]:
    """By layer, the alpha that most layers of its component have, of those where it counts."""
    named = list(layers)
    components = {name: split_component(paths[name])[0] for name, _ in named}
    counts: dict[str, Counter[float]] = {}
    for name, layer in named:
        counter = counts.setdefault(components[name], Counter())
        counter[float(layer.alpha)] += not layer.is_whole
    common = {component: count.most_common(1)[0][0] for component, count in counts.items()}
    return {name: common[component] for name, component in components.items()}


def with_common_alphas(
    layers: Iterable[tuple[str, AdapterLayer]], paths: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of layers as a file has them."""
    named = list(layers)
    alphas = common_alphas(named, paths)
    return {name: _with_alpha(layer, layer.state_dict(), alphas[name]) for name, layer in named}


def _with_alpha(
    layer: AdapterLayer, tensors: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """The tensors of a layer for the same change with another alpha."""
    own = tensors["alpha"]
    scaled = next((name for name in layer.scaled_factors if name in tensors), None)
    if float(own) == alpha or scaled is None:
        return dict(tensors)
    factor = tensors[scaled].float()
    if not layer.is_whole:
        factor = factor * (float(own) / alpha)
    return {**tensors, scaled: factor, "alpha": own.new_tensor(alpha)}


def with_own_alphas(
    layers: Mapping[str, Mapping[str, Tensor]],
    configured: Mapping[str, AdapterLayer],
    paths: Mapping[str, str],
) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a file with the alphas of `configured` layers, where they were changed.

    Those of another rank, of another kind or beside these layers stay as they are.
    """
    common = common_alphas(configured.items(), paths)
    return {
        name: _with_own_alpha(configured[name], own, common[name]) if name in configured else own
        for name, own in layers.items()
    }


def _with_own_alpha(
    layer: AdapterLayer, tensors: Mapping[str, Tensor], common: float
) -> Mapping[str, Tensor]:
    factors = {name: t.shape for name, t in tensors.items() if name not in ("alpha", "dora_scale")}
    own = {name: p.shape for name, p in layer.named_parameters() if name != "dora_scale"}
    is_alike = factors == own and "alpha" in tensors
    if is_alike and math.isclose(float(tensors["alpha"]), common, rel_tol=1e-6):
        return _with_alpha(layer, tensors, float(layer.alpha))
    return tensors
