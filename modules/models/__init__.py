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
    "IFPipeline": "modules.models.deepfloyd_if.DeepFloydIF",
}
"""`_class_name` of model_index.json -> the family's class."""

_RELATED = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetInpaintPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetInpaintPipeline": "StableDiffusionXLInpaintPipeline",
    "IFImg2ImgPipeline": "IFPipeline",
    "IFInpaintingPipeline": "IFPipeline",
    "IFSuperResolutionPipeline": "IFPipeline",
    "IFImg2ImgSuperResolutionPipeline": "IFPipeline",
    "IFInpaintingSuperResolutionPipeline": "IFPipeline",
}


def load(
    path: str,
    *,
    vae: str | None = None,
    weights: bool | Collection[str] = True,
    prediction_type: str | None = None,
) -> DiffusionModel:
    """Load a base model from a diffusers directory, a single file or a hub id.

    Without weights only the config files are read and every parameter stays on the `meta` device;
    with the names of some pieces (`text_encoder`) the others' do. `prediction_type` is for files
    that don't tell it.

    Raises:
        ValueError: it is not there, no base model, of a family that is not known, or says of
            itself that it has another prediction type.
    """
    from modules.models.checkpoint import DiffusersFolder
    from modules.models.pieces import find_directory
    from modules.models.single_file import SingleFile
    from modules.models.tensor_file import find_file

    file = find_file(path)
    place = find_directory(path, weights=bool(weights)) if file is None else file
    opened = DiffusersFolder if file is None else SingleFile
    checkpoint = opened(place, path=path, prediction_type=prediction_type)
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
