"""A VAE in one file: alone, in the original layout or diffusers', or as part of a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from modules.models.filling import check_tensors, fill, make_module
from modules.models.layouts import SD1, UNET, VAE, published_config
from modules.models.original_names import Place, pack, vae_places
from modules.models.single_file import SingleFile
from modules.models.tensor_file import open_tensors
from modules.models.unpublished import CONFIGS_KEY, own_configs, unpublished_configs


def load_vae_file(file: Path, path: str, *, config: Mapping[str, Any], weights: bool) -> Any:
    """Load an AutoencoderKL in float32; one that stands alone has `config`, or SD1's without any.

    What its metadata say of its config, as in files that we wrote, goes before.

    Raises:
        ValueError: the file holds no VAE, or one of another size.
    """
    stored = open_tensors(file)
    if any(name.startswith(UNET) for name in stored.shapes):
        whole = SingleFile(file, path=path)
        whole.check(["vae"])
        return whole.load("vae", AutoencoderKL, weights=weights)
    brought = own_configs(stored.metadata, path).get("vae", {})
    own = {**(config or published_config(SD1, "vae")), **brought}
    vae = make_module(AutoencoderKL, own, weights=weights)
    where = _places(vae, stored.shapes)
    if not where:
        raise ValueError(f"{path}: holds no VAE of Stable Diffusion")
    check_tensors(stored.shapes, vae, where, path)
    if weights:
        with stored.reading() as read:
            fill(vae, where, read)
    return vae


def save_vae_file(vae: Any, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Write an AutoencoderKL alone in the original layout, as AUTOMATIC1111 and ComfyUI read it.

    Its config goes into the metadata as far as it isn't SD1's.
    """
    own = {key: tensor.detach().to("cpu", dtype) for key, tensor in vae.state_dict().items()}
    packed = pack(own, vae_places(vae, own))
    configs = unpublished_configs({"vae": vae}, {}, SD1)
    brought = {CONFIGS_KEY: json.dumps(configs)} if configs else {}
    save_file(packed, path, metadata={**metadata, **brought, "format": "pt"})


def _places(vae: Any, names: Mapping[str, Any]) -> dict[str, Place]:
    """The places of its tensors in the layout that the names are of; empty if it is none."""
    keys = vae.state_dict()
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        return {key: Place(key) for key in keys}
    for prefix in ("", VAE):
        if any(name.startswith(f"{prefix}decoder.") for name in names):
            found = vae_places(vae, keys)
            return {key: Place(prefix + place.name, place.form) for key, place in found.items()}
    return {}
