"""Build the parts of the tiny Stable Diffusion and write them as a diffusers directory."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from preprocess.scenes import PALETTE, SHAPES, STYLES

MAX_LENGTH = 32
# Words that the base sees in captions without any meaning: a fine-tuning gives them one.
SUFFIX_WORDS = (
    *("polaroid", "stamp", "postcard", "sketch", "pastel", "neon", "vintage", "mosaic"),
    *("stencil", "sticker", "snapshot", "winter", "sunset", "glossy", "matte", "retro"),
    *("comic", "sks"),
)
OTHER_WORDS = (
    *("a", "an", "on", "background", "photo", "of", "picture", "the", "style", "in", "with"),
    *("and", "no", "small", "large", "dotted", "plain", "white", "black", "grey", "brown"),
    *("shape", "frame", "bad", "blurry", "left", "right", "above", "below"),
    *(",", ".", "two", "three"),
)
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """Build CLIP's byte-pair tokenizer, of which every word above is a single token."""
    characters = _byte_characters()
    merges = _learn_merges([*PALETTE, *SHAPES, *STYLES, *SUFFIX_WORDS, *OTHER_WORDS])
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += ["".join(pair) for pair in merges]
    tokens += [_START, _END]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def build_vae() -> AutoencoderKL:
    """Build the autoencoder: factor 4, four latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def build_unet() -> UNet2DConditionModel:
    """Build the denoiser: SD1's block types at a hundredth of the size."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=8,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the text encoder: two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler(prediction_type: str) -> DDPMScheduler:
    """Build SD1's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )


def build_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    prediction_type: str,
) -> StableDiffusionPipeline:
    """Put the parts together for sampling with DDIM."""
    scheduler = DDIMScheduler.from_config(
        build_scheduler(prediction_type).config, set_alpha_to_one=False
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_directory(
    output: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    prediction_type: str,
) -> None:
    """Write a StableDiffusionPipeline directory in float16 that older libraries read as well."""
    pipeline = build_pipeline(vae, unet, text_encoder, tokenizer, prediction_type=prediction_type)
    pipeline.register_modules(scheduler=build_scheduler(prediction_type))
    weights = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    originals = {
        part: {key: value.clone() for key, value in model.state_dict().items()}
        for part, model in weights.items()
    }
    for model in weights.values():
        model.half()
    pipeline.save_pretrained(output)
    # transformers before 5.6 looks for the prefix, and else starts from random weights.
    keys = text_encoder.state_dict()
    prefixed = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in keys.items()}
    save_file(prefixed, output / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    save_vocabulary(tokenizer, output / "tokenizer")
    for part, model in weights.items():
        model.float().load_state_dict(originals[part])


def save_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, which older tokenizers need beside tokenizer.json."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def count_parameters(model: torch.nn.Module) -> int:
    """Count a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _byte_characters() -> list[str]:
    """List the printable character that stands for each of the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Learn byte pairs, the most frequent first, until every word is a single token."""
    parts = [[*word[:-1], word[-1] + "</w>"] for word in dict.fromkeys(words)]
    merges = []
    while pairs := Counter(pair for word in parts for pair in itertools.pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        parts = [_merge(word, best) for word in parts]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in word:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
