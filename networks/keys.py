"""Module path <-> key on disk, as kohya-ss/sd-scripts names them and every program reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
