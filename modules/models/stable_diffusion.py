"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, latents of 4 channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from modules.batch import Batch
from modules.models import find_directory
from modules.models.base import DiffusionModel, TextEncoder
from modules.models.portable import save_text_encoder, save_tokenizer


class StableDiffusion(DiffusionModel):
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
        self.denoiser = unet
        self.text_encoders = [TextEncoder(text_encoder, tokenizer)]
        self.vae = vae
        self.scheduler = scheduler
        self.path = path
        self._check()

    @classmethod
    def from_pretrained(
        cls, directory: Path, *, path: str, vae: str | None, weights: bool
    ) -> StableDiffusion:
        vae_directory = find_directory(vae) if vae else directory
        vae_subfolder = "vae" if (vae_directory / "vae").is_dir() else None
        text_directory = directory / "text_encoder"
        if weights:
            unet = _load(UNet2DConditionModel, directory, "unet")
            encoder = _load(CLIPTextModel, directory, "text_encoder")
            autoencoder = _load(AutoencoderKL, vae_directory, vae_subfolder)
        else:
            with torch.device("meta"):
                unet = _from_config(UNet2DConditionModel, directory, "unet")
                encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(text_directory))
                autoencoder = _from_config(AutoencoderKL, vae_directory, vae_subfolder)
        return cls(
            unet=unet,
            text_encoder=encoder,
            tokenizer=CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer"),
            vae=autoencoder,
            scheduler=DDPMScheduler.from_pretrained(directory, subfolder="scheduler"),
            path=path,
        )

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype) -> None:
        from diffusers import StableDiffusionPipeline

        encoder = self.text_encoders[0]
        for name, component in (("unet", self.denoiser), ("vae", self.vae)):
            save_component(component, directory / name, dtype)
        save_text_encoder(encoder.module, directory / "text_encoder", dtype)
        save_tokenizer(encoder.tokenizer, directory / "tokenizer")
        self.scheduler.save_pretrained(directory / "scheduler")
        index = {
            "_class_name": StableDiffusionPipeline.__name__,
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", type(self.scheduler).__name__],
            "text_encoder": ["transformers", type(encoder.module).__name__],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", type(self.denoiser).__name__],
            "vae": ["diffusers", type(self.vae).__name__],
            "requires_safety_checker": False,
        }
        text = json.dumps(index, indent=2)
        (directory / "model_index.json").write_text(text + "\n", encoding="utf-8")

    def encode_prompts(self, batch: Batch) -> dict[str, Any]:
        encoder = self.text_encoders[0]
        device = next(encoder.module.parameters()).device
        ids = encoder.tokenize(batch.captions).to(device, non_blocking=True)
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
        width = self.text_encoders[0].module.config.hidden_size
        wanted = self.denoiser.config.cross_attention_dim
        if width != wanted:
            raise ValueError(
                f"{self.path}: the text encoder's width is {width}, the UNet wants {wanted}"
            )


def save_component(component: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a diffusers model in `dtype` without changing the one in memory."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    component.save_config(directory)
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for key, value in component.state_dict().items()
    }
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    path = directory / "diffusion_pytorch_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})


def _from_config(cls: Any, directory: Path, subfolder: str | None) -> Any:
    return cls.from_config(cls.load_config(directory, subfolder=subfolder))


def _load(cls: Any, directory: Path, subfolder: str | None) -> Any:
    """Load a piece in float32 (see `variant`: some directories hold fp16 files only)."""
    folder = directory / (subfolder or "")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: has no config.json; the model directory is incomplete")
    weights = [f.name for f in folder.iterdir() if f.suffix in (".safetensors", ".bin")]
    plain = [name for name in weights if ".fp16." not in name]
    if not weights:
        raise ValueError(f"{folder}: has no weights (.safetensors or .bin)")
    return cls.from_pretrained(
        directory,
        subfolder=subfolder or "",
        dtype=torch.float32,
        variant=None if plain else "fp16",
        use_safetensors=None,
        local_files_only=True,
    )
