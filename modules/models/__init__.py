"""Model families: `load` finds the class by what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from modules.component import resolve

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

FAMILIES = {
    "StableDiffusionPipeline": "modules.models.stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "modules.models.stable_diffusion_xl.StableDiffusionXL",
}
"""`_class_name` of model_index.json -> the family's class."""

_RELATED = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
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
    from modules.models.checkpoint import DiffusersFolder
    from modules.models.pieces import find_directory

    checkpoint = DiffusersFolder(find_directory(path, weights=bool(weights)), path=path)
    name = checkpoint.index["_class_name"]
    family = FAMILIES.get(_RELATED.get(name, name))
    if family is None:
        raise ValueError(
            f"{path}: models of {name} are not supported; supported: {', '.join(FAMILIES)}"
        )
    return resolve(family).from_checkpoint(checkpoint, vae=vae, weights=weights)
