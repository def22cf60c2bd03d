"""What an adapter's layers are, in words: for the metadata of files and for the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from networks.keys import network_metadata
from networks.layer import AdapterLayer

logger = logging.getLogger(__name__)


def describe(
    model: Any,
    layers: Sequence[AdapterLayer],
    *,
    module: str,
    algorithm: str | None,
    args: Mapping[str, str],
) -> dict[str, str]:
    """The `ss_*` metadata of a file with these layers.

    `module` is by which readers tell what a file is; those of DoRAs are LyCORIS'.
    """
    spatial = [layer for layer in layers if layer.is_spatial]
    plain = [layer for layer in layers if not layer.is_spatial] or spatial
    args = dict(args)
    if spatial and plain is not spatial:
        args |= {"conv_dim": _common(spatial, _rank), "conv_alpha": _common(spatial, _alpha)}
    axes = {layer.dora_axis for layer in layers} - {None}
    if axes:
        module = "lycoris.kohya"
        args |= {"dora_wd": "True", "wd_on_output": str("input" not in axes)}
    if module == "lycoris.kohya" and algorithm is not None:
        args["algo"] = algorithm
    return network_metadata(
        model,
        module=module,
        rank=_common(plain, _rank),
        alpha=Counter(_alpha(layer) for layer in plain).most_common(1)[0][0],
        args=args,
    )


def warn_of_differences(
    path: Path, configured: Mapping[str, AdapterLayer], read: Mapping[str, AdapterLayer]
) -> None:
    """Say where a file's layers are others than the config's."""
    for spatial, prefix in ((False, ""), (True, "conv_")):
        for key, value in (("rank", _rank), ("alpha", _alpha), ("dora", _dora)):
            found = {
                value(layer)
                for name, layer in read.items()
                if layer.is_spatial == spatial and value(layer) != value(configured[name])
            }
            if found:
                several = key != "dora" and len(found) > 3
                shown = " to ".join(_ends(found)) if several else " and ".join(sorted(found))
                logger.warning("%s: has %s%s %s, which is taken", path, prefix, key, shown)


def _common(layers: Sequence[AdapterLayer], value: Callable[[AdapterLayer], str]) -> str:
    """What all layers have; "Dynamic" if they differ, as other programs call it."""
    values = {value(layer) for layer in layers}
    return values.pop() if len(values) == 1 else "Dynamic"


def _ends(values: set[str]) -> tuple[str, str]:
    """The smallest and the largest number."""
    return min(values, key=float), max(values, key=float)


def _rank(layer: AdapterLayer) -> str:
    return str(layer.rank)


def _alpha(layer: AdapterLayer) -> str:
    return f"{float(layer.alpha):g}"


def _dora(layer: AdapterLayer) -> str:
    return layer.dora_axis or "null"
