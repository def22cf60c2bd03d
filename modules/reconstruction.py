"""The objective of a VAE: to give back the image, through latents near a standard normal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn import functional

from modules.batch import Batch
from modules.component import build
from modules.errors import RunError
from modules.losses import absolute_error, squared_error
from modules.mixed_precision import without_autocast
from modules.numbers import NonNegative
from modules.objectives import masked_mean


class Reconstruction:
    """Weighted sum of reconstruction errors, perceptual distance and KL divergence.

    The negative evidence lower bound of Kingma & Welling 2014 (arXiv:1312.6114, eq. 10) with a
    small weight of the KL divergence, as Rombach et al. 2022 (arXiv:2112.10752, G) train latent
    diffusion's autoencoder. As there, error and divergence are weighed as sums over an image; both
    are then divided by the image's values, 3 H W, so that the weights hold for every size.

    Args:
        l1: weight of |reconstruction - image|, images in [-1, 1].
        mse: weight of (reconstruction - image)^2.
        kl: weight of the posterior's divergence from a standard normal, where the encoder is
            trained.
        perceptual: component that is called with two batches of images in [-1, 1] and gives the
            distance of each pair: `{module: lpips.LPIPS, args: {net: vgg}}` (Zhang et al. 2018,
            arXiv:1801.03924).
        perceptual_weight: weight of that distance.
        sample_posterior: decode a sample of the posterior, which is what denoisers are trained on
            and what gives the encoder its gradients by reparametrisation; else its mean.
    """

    def __init__(
        self,
        *,
        l1: NonNegative = 1.0,
        mse: NonNegative = 1.0,
        kl: NonNegative = 1e-6,
        perceptual: Mapping[str, Any] | None = None,
        perceptual_weight: NonNegative = 1.0,
        sample_posterior: bool = True,
    ):
        self.l1, self.mse, self.kl = l1, mse, kl
        self.perceptual_weight = perceptual_weight if perceptual else 0.0
        self.sample_posterior = sample_posterior
        if not (self.l1 or self.mse or self.perceptual_weight):
            raise ValueError("l1, mse: both weights are 0, so nothing compares the images")
        self.perceptual = (
            PerceptualDistance(perceptual["module"], perceptual.get("args") or {})
            if perceptual and perceptual_weight
            else None
        )

    def reconstruction_loss(self, vae: Any, batch: Batch) -> Tensor:
        """The loss of each image, (B,). A mask weights the error of the pixels below it."""
        pixels = batch.pixel_values
        assert pixels is not None, "the dataset gave no pixel_values"
        moments = vae.encode(pixels).latent_dist.parameters.float()  # (B, 2 C, h, w)
        posterior = DiagonalGaussianDistribution(moments)
        latents = posterior.sample() if self.sample_posterior else posterior.mode()
        reconstruction = vae.decode(latents).sample.float()
        mask = None if batch.mask is None else to_pixels(batch.mask, pixels)
        loss = masked_mean(self.error(reconstruction, pixels), mask)
        if moments.requires_grad:
            loss = loss + self.kl * posterior.kl() / pixels[0].numel()
        if self.perceptual is not None:
            seen = reconstruction if mask is None else torch.lerp(pixels, reconstruction, mask)
            loss = loss + self.perceptual_weight * self.perceptual(seen, pixels)
        return loss

    def error(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Of each value, (B, 3, H, W)."""
        absolute = absolute_error(reconstruction, pixels)
        return self.l1 * absolute + self.mse * squared_error(reconstruction, pixels)


class PerceptualDistance:
    """A frozen network's distance of images, in full precision."""

    def __init__(self, path: str, args: Mapping[str, Any]):
        self.path = path
        self.network = build(path, args)
        if isinstance(self.network, torch.nn.Module):
            self.network.requires_grad_(False).eval()

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """The distance of each pair, (B,), of images (B, 3, H, W) in [-1, 1].

        Raises:
            RunError: the network gives something else.
        """
        if isinstance(self.network, torch.nn.Module):
            self.network.to(images.device)  # where it is from the second call on
        with without_autocast(images.device.type):
            distance = self.network(images, others)
        if distance.ndim == 0 or len(distance) != len(images):
            raise RunError(
                f"objective.args.perceptual: {self.path} gave shape {tuple(distance.shape)} for "
                f"{len(images)} images; it must give a distance for each"
            )
        return distance.flatten(1).mean(1) if distance.ndim > 1 else distance


def to_pixels(mask: Tensor, pixels: Tensor) -> Tensor:
    """A mask (B, 1, h, w) of latents' size as one of the images' size (B, 1, H, W)."""
    return functional.interpolate(mask.float(), pixels.shape[-2:], mode="nearest")
