"""Module path <-> key on disk, as kohya-ss/sd-scripts names them and every program reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from networks.key_rules import check_layers


def split_component(path: str) -> tuple[str, str]:
    """`unet.mid_block.x` -> (`unet`, `mid_block.x`)."""
    parts = path.split(".")
    size = 2 if parts[0] == "text_encoders" else 1
    return ".".join(parts[:size]), ".".join(parts[size:])


def kohya_name(model: Any, path: str) -> str:
    """The name of a module in an adapter file: `lora_unet_mid_block_attentions_0_proj_in`."""
    component, name = split_component(path)
    classic = model.classic_path(component, name)
    return f"{model.component_prefixes[component]}_{classic.replace('.', '_')}"


def file_names(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """The names of layers in an adapter file, by module path.

    Raises:
        ValueError: readers of such files know no layer of that name.
    """
    names = {path: kohya_name(model, path) for path in paths}
    check_layers(names, family_of(model))
    return names


def family_of(model: Any) -> str | None:
    """The model's family as files name it, by which readers know their keys; None if they don't."""
    return model.base_version().get("ss_base_model_version")


def network_metadata(
    model: Any, *, module: str, rank: str, alpha: str, args: Mapping[str, Any]
) -> dict[str, str]:
    """The `ss_*` values by which other programs tell what an adapter is."""
    import json

    return {
        **model.base_version(),
        "ss_network_module": module,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({key: str(value) for key, value in args.items()}),
    }
