"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, latents of 4 channels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from modules.models.base import DiffusionModel
from modules.models.pieces import (
    check_pieces,
    is_wanted,
    load_piece,
    load_vae,
    save_piece,
    write_json,
)
from modules.models.portable import save_text_encoder, save_tokenizer
from modules.models.text_encoder import TextEncoder


class StableDiffusion(DiffusionModel):
    adapter_targets: ClassVar = {
        "unet": ("Transformer2DModel",),
        "text_encoders": ("CLIPAttention", "CLIPMLP"),
    }
    conv_targets: ClassVar = {"unet": ("ResnetBlock2D", "Downsample2D", "Upsample2D")}
    pieces: ClassVar = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")
    component_prefixes: ClassVar = {"unet": "lora_unet", "text_encoders.0": "lora_te"}

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        path: str = "",
    ):
        self.denoiser = unet
        self.text_encoders = [TextEncoder(text_encoder, tokenizer)]
        self.vae = vae
        self.scheduler = scheduler
        self.path = path
        self._originals: Mapping[str, Callable[..., Any]] = {}
        self._scheduler_config: dict[str, Any] | None = None
        self._check()

    @classmethod
    def from_pretrained(
        cls, directory: Path, *, path: str, vae: str | None, weights: bool | Collection[str]
    ) -> StableDiffusion:
        check_pieces(directory, cls.pieces if vae is None else cls.pieces[:-1])
        loaders = {
            "unet": partial(load_piece, UNet2DConditionModel, directory / "unet"),
            "text_encoder": partial(load_piece, CLIPTextModel, directory / "text_encoder"),
            "vae": partial(load_vae, vae or str(directory / "vae")),
        }
        model = cls(
            **{name: load(weights=is_wanted(name, weights)) for name, load in loaders.items()},
            tokenizer=CLIPTokenizer.from_pretrained(directory / "tokenizer"),
            scheduler=DDPMScheduler.from_pretrained(directory / "scheduler"),
            path=path,
        )
        model._originals = loaders
        model._scheduler_config = DDPMScheduler.load_config(directory / "scheduler")
        return model

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype) -> None:
        encoder = self.text_encoders[0]
        save_piece(self._as_trained("unet", self.denoiser), directory / "unet", dtype)
        save_piece(self._as_trained("vae", self.vae), directory / "vae", dtype)
        module = self._as_trained("text_encoder", encoder.module)
        save_text_encoder(module, directory / "text_encoder", dtype)
        save_tokenizer(encoder.tokenizer, directory / "tokenizer")
        scheduler = {**(self._scheduler_config or self.scheduler.config), **self.scheduler_changes}
        if scheduler.get("rescale_betas_zero_snr"):  # not every scheduler knows it, DDIM does
            scheduler["_class_name"] = "DDIMScheduler"
        write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler.get("_class_name", "DDPMScheduler")],
            "text_encoder": ["transformers", type(encoder.module).__name__],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", type(self.denoiser).__name__],
            "vae": ["diffusers", type(self.vae).__name__],
            "requires_safety_checker": False,
        }
        write_json(directory / "model_index.json", index)

    def _as_trained(self, name: str, piece: Any) -> Any:
        """A piece as it should be saved.

        One that was not changed is read again, since the one in memory may have been rounded to
        the precision of the computation.
        """
        changed = any(parameter.requires_grad for parameter in piece.parameters()) or any(
            self.components()[component] is piece for component in self.changed
        )
        return piece if changed or name not in self._originals else self._originals[name]()

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        encoder = self.text_encoders[0]
        device = next(encoder.module.parameters()).device
        ids = encoder.tokenize(captions).to(device, non_blocking=True)
        return {"encoder_hidden_states": encoder.module(ids).last_hidden_state}

    def base_version(self) -> dict[str, str]:
        second = self.denoiser.config.cross_attention_dim == 1024
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        version = ("sd_v2_v" if velocity else "sd_v2") if second else "sd_v1"
        return {"ss_base_model_version": version, "ss_v2": str(second)}

    def _check(self) -> None:
        assert self.vae is not None
        channels, latent = self.denoiser.config.in_channels, self.vae.config.latent_channels
        if channels == 9:
            raise ValueError(
                f"{self.path}: an inpainting UNet (9 input channels) cannot be trained; "
                "use the base model it was made from"
            )
        if channels != latent:
            raise ValueError(
                f"{self.path}: the UNet takes {channels} channels, the VAE gives {latent}; "
                "check model.vae"
            )
        encoder = self.text_encoders[0]
        words, tokens = encoder.module.config.vocab_size, len(encoder.tokenizer)
        if tokens != words:
            raise ValueError(
                f"{self.path}: the tokenizer has {tokens} tokens, the text encoder {words}; "
                "the tokenizer's files are not this model's"
            )
        width = encoder.module.config.hidden_size
        wanted = self.denoiser.config.cross_attention_dim
        if width != wanted:
            raise ValueError(
                f"{self.path}: the text encoder's width is {width}, the UNet wants {wanted}"
            )
