"""The encoding half of a VAE: loaded from where the person's model is, run in batches that fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.models.fingerprint import hash_encoder
from modules.models.pieces import has_vae, load_vae
from preprocess.device import DTYPES, choose_device, choose_dtype
from preprocess.posterior import POSTERIORS, Posterior

logger = logging.getLogger(__name__)


class NoVAE(ValueError):
    """A model that works on pixels, and so has nothing to encode images with."""


class VAEEncoder:
    """Encode images to what is wanted of the VAE's posterior, unscaled; the decoder is dropped.

    A sample depends on the image and its seed alone, not on the batch or the device's generator.
    """

    def __init__(
        self, vae: Any, *, device: torch.device, dtype: str, posterior: Posterior = "sample"
    ) -> None:
        self.posterior = posterior
        vae.decoder = vae.post_quant_conv = None
        self.fingerprint = hash_encoder(vae)
        self.dtype = dtype
        self.device = device
        self.scale_factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self.max_batch_size: int | None = None
        """Set once a batch didn't fit into memory."""
        # diffusers' own `to` warns of modules to be kept in float32, of which there are none.
        self._vae = torch.nn.Module.to(vae, device, DTYPES[dtype]).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, pixel_values: Tensor, seeds: Sequence[int]) -> np.ndarray:
        """Return latents (B, C, h, w), float32, of images (B, 3, H, W) in [-1, 1].

        Of moments there are 2C channels: the mean, and behind it the logarithm of the variance.

        Raises:
            ValueError: not even one image fits into memory.
        """
        limit = self.max_batch_size or len(seeds)
        parts = []
        start = 0
        while start < len(seeds):
            part = slice(start, start + limit)
            try:
                parts.append(self._encode_part(pixel_values[part], seeds[part]))
                start += limit
                continue
            except RuntimeError as error:
                if "out of memory" not in str(error).lower():  # not every backend has a class
                    raise
                if limit == 1:
                    height, width = pixel_values.shape[2:]
                    raise ValueError(
                        f"one image of {width}x{height} doesn't fit into the memory of "
                        f"{self.device}; use --dtype bf16 or --device cpu"
                    ) from error
            # Only out here is the error gone, and with it what kept the memory.
            limit = self.max_batch_size = limit // 2
            logger.warning("out of memory: batches of %d from here on", limit)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return np.concatenate(parts)

    def _encode_part(self, pixel_values: Tensor, seeds: Sequence[int]) -> np.ndarray:
        pixel_values = pixel_values.to(self.device, DTYPES[self.dtype])
        posterior = self._vae.encode(pixel_values).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        if self.posterior == "mode":
            return mean.cpu().numpy()
        if self.posterior == "moments":
            return torch.cat([mean, posterior.logvar.float()], dim=1).cpu().numpy()
        noise = torch.stack(
            [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        return (mean + std * noise.to(self.device)).cpu().numpy()


def load_encoder(
    path: str, *, device: str | None, dtype: str, posterior: Posterior = "sample"
) -> VAEEncoder:
    """Load the VAE of `path` onto a device, by default the accelerator if there is one.

    Raises:
        NoVAE: `path` is a model that works on pixels.
        ValueError: there is no such VAE, device, dtype, or part of the posterior.
    """
    if posterior not in POSTERIORS:
        raise ValueError(f"posterior: {posterior!r} is not one of {', '.join(POSTERIORS)}")
    choose_dtype(dtype)
    if not has_vae(path):
        raise NoVAE(
            f"{path}: works on pixels and has no VAE, so there are no latents to make; train with "
            "`module: modules.dataset.ImageDataset`"
        )
    place = choose_device(device)
    return VAEEncoder(load_vae(path), device=place, dtype=dtype, posterior=posterior)
