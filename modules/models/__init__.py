"""Model families: `load` finds the class by what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Collection
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


def load(
    path: str, *, vae: str | None = None, weights: bool | Collection[str] = True
) -> DiffusionModel:
    """Load a base model from a diffusers directory or hub id.

    Without weights only the config files are read and every parameter stays on the `meta` device;
    with the names of some pieces (`text_encoder`) the others' do.

    Raises:
        ValueError: it is not there, not a diffusers model, or of a family that is not known.
    """
    from modules.models.pieces import find_directory, read_index

    directory = find_directory(path, weights=bool(weights))
    name = read_index(directory, path)["_class_name"]
    family = FAMILIES.get(_RELATED.get(name, name))
    if family is None:
        raise ValueError(
            f"{path}: models of {name} are not supported; supported: {', '.join(FAMILIES)}"
        )
    return resolve(family).from_pretrained(directory, path=path, vae=vae, weights=weights)
