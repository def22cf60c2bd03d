"""The space in which a denoiser works: a VAE's latents, or pixels themselves."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from modules.batch import Batch, Sample
from modules.mixed_precision import without_autocast
from modules.moments import draw

logger = logging.getLogger(__name__)


class Space(Protocol):
    """How images get to the denoiser and back."""

    scale_factor: int  # pixels of one position along a side

    def check(self, sample: Sample) -> None:
        """Raise ValueError if a dataset's sample has no image that can be encoded."""
        ...

    def encode(self, batch: Batch) -> Tensor:
        """Unscaled values of a batch's images, (B, C, h, w)."""
        ...

    def scale(self, values: Tensor) -> Tensor:
        """Values in the range that the denoiser works on."""
        ...

    def decode(self, scaled: Tensor) -> list[Image.Image]:
        """Pictures of scaled values, (B, C, h, w)."""
        ...

    def decode_pixels(self, scaled: Tensor) -> Tensor:
        """The same as pixels (B, 3, H, W) in [-1, 1]."""
        ...


class Latents:
    """Latents of a VAE, which a dataset may have cached, or the moments to draw them from.

    `scaling_factor` brings them to unit variance (Rombach et al. 2022, arXiv:2112.10752, G).
    """

    def __init__(self, vae: Any):
        self.vae = vae
        self.scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = vae.config.latent_channels

    def check(self, sample: Sample) -> None:
        if sample.latents is None and sample.pixel_values is None:
            raise ValueError(f"{sample.name}: has neither latents nor pixel_values")

    def encode(self, batch: Batch) -> Tensor:
        if batch.latents is not None:
            return draw(batch.latents, self.channels)
        assert batch.pixel_values is not None, "the dataset gave neither latents nor pixel_values"
        return self.encode_pixels(batch.pixel_values)

    def encode_pixels(self, pixel_values: Tensor, *, sampled: bool = True) -> Tensor:
        """A sample of the posterior of pixels (B, 3, H, W) in [-1, 1], or its mean."""
        with torch.no_grad(), without_autocast(pixel_values.device.type):
            posterior = self.vae.encode(pixel_values.to(self.vae.dtype)).latent_dist
            return (posterior.sample() if sampled else posterior.mode()).float()

    def scale(self, values: Tensor) -> Tensor:
        return values * self.vae.config.scaling_factor

    def decode(self, scaled: Tensor) -> list[Image.Image]:
        return to_pictures(self.decode_pixels(scaled))

    @torch.inference_mode()
    def decode_pixels(self, scaled: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), of one image at a time; in tiles where the memory is too small."""
        with without_autocast(scaled.device.type):
            latents = scaled.to(self.vae.dtype) / self.vae.config.scaling_factor
            return torch.cat([self._decode_one(one) for one in latents.split(1)])

    def _decode_one(self, latents: Tensor) -> Tensor:
        try:
            return self.vae.decode(latents).sample
        except torch.OutOfMemoryError:
            logger.warning(
                "decoding %s latents needs more memory than there is; it is done in tiles",
                tuple(latents.shape[2:]),
            )
        release_memory(latents.device)
        self.vae.enable_tiling()
        try:
            return self.vae.decode(latents).sample
        finally:
            self.vae.disable_tiling()


class Pixels:
    """Pixels in [-1, 1], as they are."""

    scale_factor = 1

    def check(self, sample: Sample) -> None:
        if sample.pixel_values is None:
            raise ValueError(
                f"{sample.name}: has no pixel_values, and this model works on pixels; write "
                "`module: modules.dataset.ImageDataset`"
            )

    def encode(self, batch: Batch) -> Tensor:
        assert batch.pixel_values is not None, "the dataset gave no pixel_values"
        return batch.pixel_values

    def scale(self, values: Tensor) -> Tensor:
        return values

    def decode(self, scaled: Tensor) -> list[Image.Image]:
        return to_pictures(scaled)

    def decode_pixels(self, scaled: Tensor) -> Tensor:
        return scaled


def release_memory(device: torch.device) -> None:
    """Give a card's memory that torch keeps for later back to it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pictures of pixels (B, 3, H, W) in [-1, 1]."""
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(p.numpy()) for p in pixels.permute(0, 2, 3, 1).cpu()]
