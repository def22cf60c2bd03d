"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, latents of 4 channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from modules.models.base import DiffusionModel
from modules.models.compvis import original_paths
from modules.models.fit import check_latents, check_text_width, check_tokenizer
from modules.models.layouts import file_layout
from modules.models.prompts import read_states, skipped_layers
from modules.models.text_encoder import TextEncoder


class StableDiffusion(DiffusionModel):
    pipeline = "StableDiffusionPipeline"
    piece_classes: ClassVar = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "vae": AutoencoderKL,
    }
    absent: ClassVar = {
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    adapter_targets: ClassVar = {
        "unet": ("Transformer2DModel",),
        "text_encoders": ("CLIPAttention", "CLIPMLP"),
    }
    conv_targets: ClassVar = {"unet": ("ResnetBlock2D", "Downsample2D", "Upsample2D")}
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
        encoder = TextEncoder(text_encoder, tokenizer)
        super().__init__(
            denoiser=unet, text_encoders=[encoder], vae=vae, scheduler=scheduler, path=path
        )
        check_latents(self)
        check_tokenizer(self, encoder)
        check_text_width(self, text_encoder.config.hidden_size)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        states, _ = read_states(
            self.text_encoders[0], captions, skip=self.clip_skip, is_normed=True
        )
        return {"encoder_hidden_states": states}

    def idle_paths(self) -> Sequence[str]:
        return skipped_layers(self, 0)

    def known_paths(self, component: str, path: str) -> Sequence[str]:
        original = original_paths(path, self.denoiser.config) if component == "unet" else []
        return [*super().known_paths(component, path), *original]

    def base_version(self) -> dict[str, str]:
        second = file_layout(self).name == "sd2"
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        version = ("sd_v2_v" if velocity else "sd_v2") if second else "sd_v1"
        return {"ss_base_model_version": version, "ss_v2": str(second)}
