"""Inpainting: a mask and the latents of the masked image stand behind the noised latents.

Rombach et al. 2022, arXiv:2112.10752. The UNet has 4 + 1 + 4 input channels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from modules.batch import Batch, Sample
from modules.models.inpaint_masks import draw_masks
from modules.models.side_channels import NoSideChannels, SideChannels
from modules.models.spaces import Latents

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)

PICTURE, MASK = "picture", "inpaint"
"""Side inputs: RGB, 0..1; the mask is white where the image is painted."""


def find_side_channels(model: DiffusionModel) -> SideChannels:
    """What a model has behind its latents, as the number of its input channels tells."""
    if model.vae is None:
        return NoSideChannels()
    latents = Latents(model.vae)
    if model.denoiser.config.in_channels == latents.channels + 1 + latents.channels:
        return Inpainting(latents)
    return NoSideChannels()


class Inpainting:
    """A mask, 1 where the image is painted, and the latents of the image without that part.

    The dataset's masks are used, or random ones are drawn. A batch without a picture is painted
    wholly, which is drawing from the prompt alone.
    """

    requires: Sequence[str] = (PICTURE, MASK)

    def __init__(self, latents: Latents):
        self.latents = latents
        self.count = 1 + latents.channels

    def pipeline(self, name: str) -> str:
        """As diffusers names it: StableDiffusionXLInpaintPipeline."""
        return f"{name.removesuffix('Pipeline')}InpaintPipeline"

    def check(self, sample: Sample) -> None:
        """Check that there is a picture to hide a part of, and say where masks come from.

        Raises:
            ValueError: there is none, or the mask is no image.
        """
        if sample.pixel_values is None:
            raise ValueError(
                f"{sample.name}: has no pixel_values, and an inpainting model is trained on "
                "pictures of which a part is hidden; write `module: modules.dataset.ImageDataset`"
            )
        self.check_extras(sample.extras)
        if MASK in sample.extras:
            logger.info("inpainting: the masks are those of the dataset's %s/", MASK)
        else:
            logger.info(
                "inpainting: masks are drawn at random; with a folder %s/ of mask images write "
                "`extras: {%s: image}` in dataset.args",
                MASK,
                MASK,
            )

    def check_extras(self, extras: Mapping[str, Tensor]) -> None:
        """Check the picture and the mask of one image, where they are given.

        Raises:
            ValueError: one is no RGB image.
        """
        for key in self.requires:
            shape = tuple(extras[key].shape) if key in extras else (3, 0, 0)
            if len(shape) != 3 or shape[0] != 3:
                raise ValueError(
                    f"{key!r} has shape {shape}, for inpainting it is an image, (3, H, W); write "
                    f"`{key}: image` in dataset.args.extras, and name image files in sample.extras"
                )

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        """The mask at the latents' size and the masked image's scaled latents, (B, 5, h, w).

        They are the mean of the VAE's posterior: nothing is drawn for what is not noised.
        """
        picture = _picture(batch)
        mask = _mask(batch, picture)
        hidden = self.latents.encode_pixels(picture * (1 - mask), sampled=False)
        small = functional.interpolate(mask, hidden.shape[2:])  # nearest, as diffusers does
        return torch.cat([small, self.latents.scale(hidden)], dim=1)

    def complete(self, sample: Sample) -> Sample:
        """Add the picture, and where the dataset has no mask one of the middle."""
        assert sample.pixel_values is not None, "the dataset gave no pixel_values"
        picture = sample.pixel_values / 2 + 0.5
        height, width = picture.shape[1:]
        mask = torch.zeros_like(picture)
        mask[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
        return replace(sample, extras={MASK: mask, **sample.extras, PICTURE: picture})

    def shown(self, guides: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Show the picture and what of it the model sees, rather than the mask."""
        picture, mask = guides[PICTURE], _binary(guides[MASK])
        others = {key: guide for key, guide in guides.items() if key not in self.requires}
        return {PICTURE: picture, "masked": picture * (1 - mask) + mask / 2, **others}


def _picture(batch: Batch) -> Tensor:
    """The pictures of a batch, (B, 3, H, W) in [-1, 1]; grey ones if it has none."""
    if batch.pixel_values is not None:
        return batch.pixel_values
    if PICTURE in batch.extras:
        return batch.extras[PICTURE] * 2 - 1
    assert batch.original_size is not None, "a batch without images says its original_size"
    height, width = batch.original_size[0].tolist()
    return torch.zeros(len(batch.captions), 3, height, width, device=batch.original_size.device)


def _mask(batch: Batch, picture: Tensor) -> Tensor:
    """The masks of a batch, (B, 1, H, W), 0 or 1."""
    if MASK in batch.extras:
        return _binary(batch.extras[MASK])
    count, _, height, width = picture.shape
    if batch.pixel_values is None:
        return torch.ones_like(picture[:, :1])
    return draw_masks(count, (width, height)).to(picture.device)


def _binary(mask: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of images (B, 3, H, W) in 0..1."""
    return (mask.mean(dim=1, keepdim=True) >= 0.5).float()
