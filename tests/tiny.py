"""Random models of the real architectures, under a million parameters, and datasets for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from modules.models.stable_diffusion import StableDiffusion
from modules.models.stable_diffusion_xl import StableDiffusionXL

WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "mat", "photo", "of"]


def make_tokenizer() -> CLIPTokenizer:
    """A BPE tokenizer in which each of WORDS is one token."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            parts = [parts[0] + parts[1], *parts[2:]]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def make_sd(*, prediction_type: str = "epsilon", seed: int = 0, sd2: bool = False):
    """A Stable Diffusion of SD1's or SD2's shape with random weights."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    width = 32
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=(2, 4) if sd2 else 2,
        use_linear_projection=sd2,
    )
    encoder = CLIPTextModel(_text_config(tokenizer, width))
    vae = _make_vae()
    for module in (unet, encoder, vae):
        module.eval()
    return StableDiffusion(
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        vae=vae,
        scheduler=_make_scheduler(prediction_type),
    )


def make_sdxl(*, prediction_type: str = "epsilon", seed: int = 0):
    """A Stable Diffusion XL's shape with random weights; its text encoders differ in width."""
    torch.manual_seed(seed)
    tokenizers = make_tokenizer(), make_tokenizer()
    widths = 32, 48
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        norm_num_groups=4,
        cross_attention_dim=sum(widths),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    first = CLIPTextModel(_text_config(tokenizers[0], widths[0]))
    second = CLIPTextModelWithProjection(_text_config(tokenizers[1], widths[1], projection_dim=24))
    vae = _make_vae()
    for module in (unet, first, second, vae):
        module.eval()
    return StableDiffusionXL(
        unet=unet,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        vae=vae,
        scheduler=_make_scheduler(prediction_type),
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, **options) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.5,
    )


def _make_scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def save_sd(directory: Path, *, make=make_sd, **options) -> Path:
    """Write `make_sd`, or another of these, as a diffusers directory."""
    directory.mkdir(parents=True, exist_ok=True)
    make(**options).save_pretrained(directory, dtype=torch.float32)
    return directory


def save_dataset(
    directory: Path,
    buckets: Mapping[tuple[int, int], int] | None = None,
    *,
    captions: Sequence[str] = ("a red cat", "a blue dog"),
    factor: int = 4,
    seed: int = 0,
    side_inputs: bool = False,
    features: int = 12,
) -> Path:
    """Write a prepared dataset: so many images of each bucket (width, height), with latents.

    `side_inputs` adds guide images, masks, and image features of so many numbers.
    """
    rng = np.random.default_rng(seed)
    index: dict[str, list[str]] = {}
    for folder in ("images", "latents", "captions"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    number = 0
    for (width, height), count in (buckets or {(32, 32): 4}).items():
        names = index.setdefault(f"({width}, {height})", [])
        for _ in range(count):
            name = f"image{number:03d}"
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / "images" / f"{name}.png")
            latents = rng.standard_normal((4, height // factor, width // factor))
            np.save(directory / "latents" / f"{name}.npy", latents.astype(np.float32))
            caption = captions[number % len(captions)]
            (directory / "captions" / f"{name}.caption").write_text(caption, encoding="utf-8")
            if side_inputs:
                _save_side_inputs(directory, name, rng, (width, height), factor, features)
            names.append(name)
            number += 1
    (directory / "buckets.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def _save_side_inputs(
    directory: Path,
    name: str,
    rng: np.random.Generator,
    size: tuple[int, int],
    factor: int,
    features: int,
) -> None:
    for folder in ("control", "mask", "pfg"):
        (directory / folder).mkdir(exist_ok=True)
    width, height = size
    guide = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(guide).save(directory / "control" / f"{name}.png")
    mask = rng.random((height // factor, width // factor), dtype=np.float32)
    np.savez(directory / "mask" / f"{name}.npz", mask)
    values = rng.standard_normal(features, dtype=np.float32)
    np.savez(directory / "pfg" / f"{name}.npz", controll=values)
