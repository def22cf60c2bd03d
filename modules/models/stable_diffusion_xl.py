"""Stable Diffusion XL: two text encoders, a pooled embedding, and the image's size as conditions.

Podell et al. 2023, arXiv:2307.01952.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from modules.batch import Batch
from modules.models.base import DiffusionModel
from modules.models.compvis import original_paths, unet_module_name
from modules.models.fit import check_latents, check_text_width, check_tokenizer
from modules.models.prompts import read_states, skipped_layers
from modules.models.text_encoder import TextEncoder

logger = logging.getLogger(__name__)


class StableDiffusionXL(DiffusionModel):
    pipeline = "StableDiffusionXLPipeline"
    piece_classes: ClassVar = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "vae": AutoencoderKL,
    }
    absent: ClassVar = {"feature_extractor": [None, None], "image_encoder": [None, None]}
    adapter_targets: ClassVar = {
        "unet": ("Transformer2DModel",),
        "text_encoders": ("CLIPAttention", "CLIPMLP"),
    }
    conv_targets: ClassVar = {"unet": ("ResnetBlock2D", "Downsample2D", "Upsample2D")}
    component_prefixes: ClassVar = {
        "unet": "lora_unet",
        "text_encoders.0": "lora_te1",
        "text_encoders.1": "lora_te2",
    }

    clip_skip = 2

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        path: str = "",
    ):
        encoders = [TextEncoder(text_encoder, tokenizer), TextEncoder(text_encoder_2, tokenizer_2)]
        super().__init__(
            denoiser=unet, text_encoders=encoders, vae=vae, scheduler=scheduler, path=path
        )
        check_latents(self)
        for encoder in encoders:
            check_tokenizer(self, encoder)
        check_text_width(self, sum(encoder.module.config.hidden_size for encoder in encoders))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Hidden states of both, side by side, and the pooled output of the second's first chunk.

        The states are the last but one, without the encoders' last normalisation.
        """
        first, second = self.text_encoders
        skip = self.clip_skip
        small, _ = read_states(first, captions, skip=skip, is_normed=False)  # (B, 77, 768)
        large, output = read_states(second, captions, skip=skip, is_normed=False)  # (B, 77, 1280)
        return {
            "encoder_hidden_states": torch.cat([small, large], dim=-1),
            "pooled_prompt_embeds": output.text_embeds[:: second.chunks],  # (B, 1280)
        }

    def encode_prompts(self, batch: Batch) -> dict[str, Any]:
        inputs = super().encode_prompts(batch)
        pooled = inputs.pop("pooled_prompt_embeds")
        sizes = self.size_conditions(batch).to(pooled)
        return {**inputs, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def size_conditions(self, batch: Batch) -> Tensor:
        """Original size, corner of the crop and final size, each as height and width, (B, 6).

        An image of which they aren't known counts as neither scaled nor cropped.
        """
        count, final = len(batch.captions), batch.original_size
        values = batch.pixel_values if batch.latents is None else batch.latents
        if values is not None:
            factor = 1 if batch.latents is None else self.vae_scale_factor
            final = torch.tensor(values.shape[2:], device=values.device).expand(count, 2) * factor
        assert final is not None, "a batch without images says its original_size"
        original = final if batch.original_size is None else batch.original_size
        corner = torch.zeros_like(final) if batch.crop_top_left is None else batch.crop_top_left
        return torch.cat([original, corner, final], dim=1)

    def check_dataset(self, dataset: Any) -> None:
        super().check_dataset(dataset)
        if hasattr(dataset, "read_geometry") and not dataset.read_geometry():
            logger.warning(
                "%s: has no images.jsonl, so sizes and crops of the images are not known, and each "
                "counts as neither scaled nor cropped; preprocess/bucketing.py writes it",
                dataset.path,
            )

    def idle_paths(self) -> Sequence[str]:
        """Layers of the first text encoder behind those that are read; the second's are pooled."""
        return [*skipped_layers(self, 0), "text_encoders.0.final_layer_norm"]

    def classic_path(self, component: str, path: str) -> str:
        if component != "unet":
            return super().classic_path(component, path)
        return unet_module_name(path, self.denoiser.config)

    def known_paths(self, component: str, path: str) -> Sequence[str]:
        if component != "unet":
            return super().known_paths(component, path)
        return [*original_paths(path, self.denoiser.config), path]

    def base_version(self) -> dict[str, str]:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
