"""Model families: `load` finds the class by what the checkpoint says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from modules.component import resolve

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

FAMILIES = {
    "StableDiffusionPipeline": "modules.models.stable_diffusion.StableDiffusion",
}
"""`_class_name` of model_index.json -> the family's class."""

_RELATED = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
}


def load(path: str, *, vae: str | None = None, weights: bool = True) -> DiffusionModel:
    """Load a base model from a diffusers directory or hub id.

    Without weights only the config files are read and every parameter stays on the `meta` device.

    Raises:
        ValueError: it is not there, not a diffusers model, or of a family that is not known.
    """
    directory = find_directory(path, weights=weights)
    index = directory / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{path}: not a diffusers model, it has no model_index.json")
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    family = FAMILIES.get(_RELATED.get(name, name))
    if family is None:
        raise ValueError(
            f"{path}: models of {name} are not supported; supported: {', '.join(FAMILIES)}"
        )
    return resolve(family).from_pretrained(directory, path=path, vae=vae, weights=weights)


def find_directory(path: str, *, weights: bool = True) -> Path:
    """The local directory of a model; one from the hub is downloaded first."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if not weights:
            return Path(snapshot_download(path, allow_patterns=["*.json", "*.txt"]))
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(path))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: there is no such directory here, and the Hugging Face hub did not give a "
            f"model of that name ({reason})"
        ) from error
