"""Model families: `load` finds the class by what the checkpoint says of itself."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from modules.component import resolve

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)

FAMILIES = {
    "StableDiffusionPipeline": "modules.models.stable_diffusion.StableDiffusion",
    "StableDiffusionInpaintPipeline": "modules.models.stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "modules.models.stable_diffusion_xl.StableDiffusionXL",
    "StableDiffusionXLInpaintPipeline": "modules.models.stable_diffusion_xl.StableDiffusionXL",
}
"""`_class_name` of model_index.json -> the family's class."""

_RELATED = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetInpaintPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetInpaintPipeline": "StableDiffusionXLInpaintPipeline",
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
    kind = _RELATED.get(name, name)
    family = FAMILIES.get(kind)
    if family is None:
        raise ValueError(
            f"{path}: models of {name} are not supported; supported: {', '.join(FAMILIES)}"
        )
    model = resolve(family).from_checkpoint(checkpoint, vae=vae, weights=weights)
    if model.pipeline != kind:
        logger.warning(
            "%s: calls itself a %s, but its UNet has %d input channels; it is trained and saved as "
            "a %s",
            path,
            name,
            model.denoiser.config.in_channels,
            model.pipeline,
        )
    return model
