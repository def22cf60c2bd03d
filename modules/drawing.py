"""Images drawn through the same model and networks as training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.sampler_names import SamplerName
from modules.sampling_schedulers import make_sampling_scheduler, step_arguments
from modules.token_merging import whole_tokens


@torch.no_grad()
def draw_images(
    model: Any,
    networks: Sequence[Any],
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    extras: Mapping[str, Tensor] | None = None,
    negative_prompt: str | Sequence[str] = "",
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    sampler: SamplerName = "ddim",
    tome: bool = False,
    autocast: Any = contextlib.nullcontext,
) -> list[Image.Image]:
    """Draw one image for each prompt.

    `extras` holds what networks ask for, a row for each prompt. All noise comes from a CPU
    generator of each image's own seed, so that it does not depend on the device or on the other
    prompts; no other random state is touched.

    Raises:
        ValueError: the sampler can't draw by the model's schedule.
    """
    device = next(model.denoiser.parameters()).device
    scheduler = make_sampling_scheduler(model.scheduler, sampler)
    scheduler.set_timesteps(num_inference_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # looked up, it is the second where two timesteps are one
    generators = make_generators(seeds)
    latents = draw_noise(model, generators, size).to(device) * scheduler.init_noise_sigma
    step = partial(scheduler.step, **step_arguments(scheduler, generators))
    guided = guidance_scale != 1.0
    batch = guided_batch(prompts, negative_prompt if guided else None, extras or {}, size=size).to(
        device
    )
    merging = contextlib.nullcontext() if tome else whole_tokens(model.denoiser)
    with evaluation(model, networks), merging, autocast():
        torch.manual_seed(seeds[0])  # for what draws at random here, as merged tokens' places
        conditions = model.encode_prompts(batch)
        for timestep in scheduler.timesteps:
            sample = torch.cat([latents, latents]) if guided else latents
            inputs = DenoiserInputs(
                sample=scheduler.scale_model_input(sample, timestep),
                timestep=timestep.expand(len(sample)),
                **conditions,
            )
            for network in networks:
                inputs = network.condition(inputs, batch)
            prediction = model.denoise(inputs).float()
            if guided:
                negative, positive = prediction.chunk(2)
                prediction = negative + guidance_scale * (positive - negative)
            latents = step(prediction, timestep, latents).prev_sample
    return model.decode(latents)


def guided_batch(
    prompts: Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    extras: Mapping[str, Tensor],
    *,
    size: tuple[int, int],
) -> Batch:
    """The batch of one denoiser call: negative prompts first, if there is guidance.

    There is one negative prompt for all, one for each, or None: no guidance. `size` (width, height)
    is that of the images, which count as neither scaled nor cropped.
    """
    if isinstance(negative_prompt, str):
        negative_prompt = [negative_prompt] * len(prompts)
    negatives = list(negative_prompt or ())
    captions = [*negatives, *prompts]
    if negatives:
        extras = {key: torch.cat([values, values]) for key, values in extras.items()}
    return Batch(
        captions=captions,
        original_size=torch.tensor([size[1], size[0]]).repeat(len(captions), 1),
        extras=extras,
        is_negative=torch.arange(len(captions)) < len(negatives) if negatives else None,
    )


def starting_noise(model: Any, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Noise of latents for images of `size` (width, height), (len(seeds), C, h, w)."""
    return draw_noise(model, make_generators(seeds), size)


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One on the CPU for each image: it draws the image's starting noise first."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(model: Any, generators: Sequence[torch.Generator], size: tuple[int, int]) -> Tensor:
    """Noise of latents, each image's from its own generator, (len(generators), C, h, w)."""
    width, height = (side // model.vae_scale_factor for side in size)
    shape = (1, model.latent_channels, height, width)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


@contextlib.contextmanager
def evaluation(model: Any, networks: Sequence[Any]) -> Iterator[None]:
    """Everything in eval mode, and back to what it was; random states are kept."""
    modules: list[nn.Module] = [*model.components().values(), *networks]
    training = [module.training for module in modules]
    device = next(modules[0].parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module in modules:
                module.eval()
            yield
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.train(mode)
