"""A VAE alone, as what a run trains: neither UNet nor text encoders are loaded beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.models.model import Model
from modules.models.pieces import load_vae, save_piece
from modules.models.spaces import Latents
from modules.models.vae_file import save_vae_file
from modules.models.verification import verify_vae_file, verify_vae_folder
from modules.verification import Verified


class Autoencoder(Model):
    """The VAE of a model, or one by itself, called `vae` in module paths.

    Without a denoiser and text encoders it can be trained and saved, and no more.
    """

    pipeline = "AutoencoderKL"
    vae: Any

    def __init__(self, vae: Any, *, path: str = ""):
        super().__init__(denoiser=None, text_encoders=(), vae=vae, scheduler=None, path=path)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        weights: bool = True,
        config: Callable[[], dict[str, Any]] | None = None,
    ) -> Autoencoder:
        """Load the VAE of a model, or one by itself; see `load_vae`."""
        return cls(load_vae(path, weights=weights, config=config), path=path)

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype) -> None:
        """Write a VAE's directory, as `AutoencoderKL.from_pretrained` and `model.vae` read it."""
        save_piece(self.vae, directory, dtype)

    def check_single_file(self) -> None:
        """Let it be: every AutoencoderKL can be written as one file."""

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        """Write the VAE alone as one .safetensors in the original layout."""
        save_vae_file(self.vae, path, dtype=dtype, metadata=metadata)

    def verify_pretrained(self, directory: Path, *, dtype: torch.dtype) -> Verified:
        return verify_vae_folder(self.vae, directory, dtype=dtype)

    def verify_single_file(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check a written file against the VAE; raises ValueError if it differs."""
        return verify_vae_file(self.vae, path, dtype=dtype)

    def pieces(self) -> dict[str, Any]:
        return {"vae": self.vae}

    def components(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def describe(self) -> str:
        return "its VAE alone; UNet and text encoders are not loaded"

    def check_dataset(self, dataset: Any) -> None:
        """Check that a dataset gives pixels that the VAE gives back in the same size.

        Raises:
            ValueError: it doesn't.
        """
        for bucket in dataset.buckets:
            sample = dataset[bucket[0]]
            if sample.pixel_values is None:
                raise ValueError(
                    f"{sample.name}: has no pixel_values, on which a VAE is trained; write "
                    "`module: modules.dataset.ImageDataset`"
                )
            height, width = sample.pixel_values.shape[1:]
            if height % self.vae_scale_factor or width % self.vae_scale_factor:
                raise ValueError(
                    f"{sample.name}: {width}x{height} pixels are no multiples of "
                    f"{self.vae_scale_factor}, which this VAE needs; run preprocess/bucketing.py "
                    "with a step that is one"
                )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of one position of the latents along a side."""
        return Latents(self.vae).scale_factor

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels
