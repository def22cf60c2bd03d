"""Train the parts of the tiny Stable Diffusion on drawn pictures, in resumable stages."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel

from preprocess.scenes import SIZES, Scene, draw_scene, sample_scene
from tools.tiny_models import (
    MAX_LENGTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from tools.tiny_pictures import (
    BASE_STYLES,
    SIZE_SHARES,
    STYLE_SHARES,
    draw_varied_batch,
    to_pixel_values,
    vary_caption,
)
from tools.tiny_stage import run_stage, write_atomically

logger = logging.getLogger(__name__)

KL_WEIGHT = 5e-5


def train_vae(
    checkpoint: Path, *, steps: int, batch_size: int = 16, learning_rate: float = 2e-3
) -> AutoencoderKL:
    """Train the autoencoder, on crops of 32 pixels for the first 60 % of the steps.

    It sees all shapes and styles, also off centre, as a general autoencoder would: only the
    denoiser must not know the held-out concepts.
    """
    torch.manual_seed(0)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99))

    def compute_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([1, step])
        pixel_values = draw_varied_batch(rng, batch_size, crop=32 if step < 0.6 * steps else None)
        posterior = vae.encode(pixel_values).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        error = functional.l1_loss(reconstruction, pixel_values)
        error = error + functional.mse_loss(reconstruction, pixel_values)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error + KL_WEIGHT * kl

    run_stage("vae", checkpoint, {"vae": vae}, optimizer, compute_loss, steps=steps)
    return vae


def sharpen_decoder(
    vae: AutoencoderKL,
    checkpoint: Path,
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
) -> None:
    """Train the decoder alone on whole pictures, with more weight on edges and small shapes.

    The encoder stays, so that the latents stay: the denoiser may train at the same time.
    """
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99))

    def compute_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([4, step])
        pixel_values = draw_varied_batch(rng, batch_size, polaroid_share=0.4)
        with torch.no_grad():
            latents = vae.encode(pixel_values).latent_dist.sample()
        error = vae.decode(latents).sample - pixel_values
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + error.square().mean() + edges

    decoder = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    run_stage("decoder", checkpoint, decoder, optimizer, compute_loss, steps=steps)


@dataclasses.dataclass
class LatentSet:
    """Hold the encoded pictures of one size, scaled to unit variance."""

    latents: torch.Tensor  # (N, 4, height / 4, width / 4)
    captions: list[str]


def encode_pictures(vae: AutoencoderKL, checkpoint: Path, *, count: int) -> dict[str, LatentSet]:
    """Encode base pictures of all three sizes and set the autoencoder's scaling factor."""
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
    else:
        state = {"latents": {}, "captions": {}}
        for index, (size, share) in enumerate(zip(SIZES, SIZE_SHARES, strict=True)):
            rng = np.random.default_rng([2, index])
            styles = rng.choice(len(BASE_STYLES), size=max(1, round(count * share)), p=STYLE_SHARES)
            scenes = [sample_scene(rng, size=size, style=BASE_STYLES[style]) for style in styles]
            key = f"{size[0]}x{size[1]}"
            state["latents"][key] = _encode_scenes(vae, scenes)
            state["captions"][key] = [scene.caption for scene in scenes]
        write_atomically(state, checkpoint)
    everything = torch.cat([latents.flatten() for latents in state["latents"].values()])
    factor = 1 / everything.std().item()
    vae.register_to_config(scaling_factor=factor)
    logger.info("latents: scaling factor %.4f", factor)
    return {
        key: LatentSet(latents * factor, state["captions"][key])
        for key, latents in state["latents"].items()
    }


def train_denoiser(
    checkpoint: Path,
    latent_sets: dict[str, LatentSet],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1.5e-3,
    prediction_type: str = "v_prediction",
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train the denoiser with its text encoder; return the average of their late weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    scheduler = build_scheduler(prediction_type)
    unet = build_unet().to(memory_format=torch.channels_last)
    text_encoder = build_text_encoder(tokenizer)
    models = {"unet": unet, "text_encoder": text_encoder}
    averages = {f"average_{name}": copy.deepcopy(model) for name, model in models.items()}
    parameters = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)

    def compute_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([3, step])
        latents, captions = _sample_batch(rng, latent_sets, batch_size)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch_size,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        ids = tokenizer(
            captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids
        prediction = unet(noisy, timesteps, text_encoder(ids).last_hidden_state).sample
        target = noise
        if prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        # No min-SNR weights: on latents this small a shape is decided under heavy noise, which
        # they would all but leave out.
        return functional.mse_loss(prediction, target)

    def average(step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        for name, model in models.items():
            pairs = zip(averages[f"average_{name}"].parameters(), model.parameters(), strict=True)
            for mean, parameter in pairs:
                mean.data.lerp_(parameter.data, 1 - decay)

    everything = models | averages
    run_stage(
        "unet", checkpoint, everything, optimizer, compute_loss, steps=steps, after_step=average
    )
    return averages["average_unet"].eval(), averages["average_text_encoder"].eval()


def _sample_batch(
    rng: np.random.Generator, latent_sets: dict[str, LatentSet], batch_size: int
) -> tuple[torch.Tensor, list[str]]:
    sizes = np.array([len(chosen.captions) for chosen in latent_sets.values()])
    chosen = list(latent_sets.values())[rng.choice(len(sizes), p=sizes / sizes.sum())]
    indices = rng.integers(len(chosen.captions), size=batch_size)
    latents = chosen.latents[torch.from_numpy(indices)]
    latents = latents.contiguous(memory_format=torch.channels_last)
    return latents, [vary_caption(rng, chosen.captions[index]) for index in indices]


@torch.no_grad()
def _encode_scenes(vae: AutoencoderKL, scenes: list[Scene]) -> torch.Tensor:
    latents = []
    for start in range(0, len(scenes), 32):
        images = np.stack([np.asarray(draw_scene(s)) for s in scenes[start : start + 32]])
        latents.append(vae.encode(to_pixel_values(images)).latent_dist.mean)
    return torch.cat(latents)
