"""A VAE in one file: alone, in the original layout or diffusers', or as part of a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from modules.models.filling import check_tensors, fill, make_module
from modules.models.layouts import SD1, UNET, VAE, published_config
from modules.models.original_names import Place, vae_places
from modules.models.single_file import SingleFile
from modules.models.tensor_file import open_tensors


def load_vae_file(file: Path, path: str, *, config: Mapping[str, Any], weights: bool) -> Any:
    """Load an AutoencoderKL in float32; one that stands alone has `config`, or SD1's without any.

    Raises:
        ValueError: the file holds no VAE, or one of another size.
    """
    stored = open_tensors(file)
    if any(name.startswith(UNET) for name in stored.shapes):
        whole = SingleFile(file, path=path)
        whole.check(["vae"])
        return whole.load("vae", AutoencoderKL, weights=weights)
    own = config or published_config(SD1, "vae")
    vae = make_module(AutoencoderKL, own, weights=weights)
    where = _places(vae, stored.shapes)
    if not where:
        raise ValueError(f"{path}: holds no VAE of Stable Diffusion")
    check_tensors(stored.shapes, vae, where, path)
    if weights:
        with stored.reading() as read:
            fill(vae, where, read)
    return vae


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
