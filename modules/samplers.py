"""Validation images, drawn through the same model and networks as training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.grids import make_sheet
from modules.protocols import Run
from modules.schedule import Every

logger = logging.getLogger(__name__)


class GridSampler:
    """Draws every prompt at due steps: one grid each, and `before_after.png` at the end.

    Args:
        prompts: a list, or a text file with one prompt in each line (# begins a comment).
        width, height: pixels; multiples of what the model divides by.
        guidance_scale: classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        seed: of the first prompt; the next has one more.
        every_epochs, every_steps: how often; the end of the run always gets a grid.
        at_start: draw one before training.
        batch_size: images that are drawn at a time.
    """

    def __init__(
        self,
        *,
        prompts: list[str] | str,
        negative_prompt: str = "",
        width: int = 512,
        height: int = 512,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        seed: int = 0,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_start: bool = True,
        batch_size: int = 4,
    ):
        self.prompts = read_prompts(prompts) if isinstance(prompts, str) else prompts
        if not self.prompts:
            raise ValueError(f"prompts: {prompts} has no prompt in it")
        self.negative_prompt = negative_prompt
        self.width, self.height = width, height
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.seed = seed
        self.at_start = at_start
        self.batch_size = batch_size
        self._every = Every(steps=every_steps, epochs=every_epochs)
        self._before: list[Image.Image] | None = None

    def check(self, model: Any) -> None:
        """Raise if the model can't draw images of this size."""
        for name, side in (("width", self.width), ("height", self.height)):
            if side % model.size_multiple:
                raise ValueError(
                    f"{name}: {side} is no multiple of {model.size_multiple}, which "
                    "this model's images must be"
                )

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw and write the grid of this step, if one is due."""
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or (run.step == 0 and self.at_start)):
            return
        images = self.draw(run)
        folder = run.directory / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step{run.step:08d}.png"
        make_sheet([images], [""], self.prompts).save(path)
        run.log_images("samples", images, self.prompts)
        if run.step == 0:
            self._before = images
        if last and self._before:
            path = run.directory / "before_after.png"
            make_sheet([self._before, images], ["before", "after"], self.prompts).save(path)
        logger.info("images: %s", path)

    def draw(self, run: Run) -> list[Image.Image]:
        """Pictures of all prompts by the model as it is now."""
        images: list[Image.Image] = []
        for start in range(0, len(self.prompts), self.batch_size):
            prompts = self.prompts[start : start + self.batch_size]
            seeds = [self.seed + start + n for n in range(len(prompts))]
            with run.usable_weights():
                images += draw_images(
                    run.model,
                    list(run.networks.values()),
                    prompts=prompts,
                    negative_prompt=self.negative_prompt,
                    seeds=seeds,
                    size=(self.width, self.height),
                    num_inference_steps=self.num_inference_steps,
                    guidance_scale=self.guidance_scale,
                    autocast=run.autocast,
                )
        return images


def read_prompts(path: str) -> list[str]:
    """The lines of a text file, without empty ones and comments."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts: {path} cannot be read as UTF-8 text ({error})") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@torch.no_grad()
def draw_images(
    model: Any,
    networks: Sequence[Any],
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    negative_prompt: str = "",
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    autocast: Any = contextlib.nullcontext,
) -> list[Image.Image]:
    """Draw one image for each prompt with DDIM (Song et al. 2020, arXiv:2010.02502).

    The starting noise comes from a CPU generator of each image's own seed, so that it does not
    depend on the device or on the other prompts; no other random state is touched.
    """
    device = next(model.denoiser.parameters()).device
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=device)
    latents = starting_noise(model, seeds, size).to(device) * scheduler.init_noise_sigma
    guided = guidance_scale != 1.0
    captions = [*([negative_prompt] * len(prompts) if guided else []), *prompts]
    batch = Batch(captions=captions)
    with evaluation(model, networks), autocast():
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
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    return model.decode(latents)


def starting_noise(model: Any, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Noise of latents for images of `size` (width, height), (len(seeds), C, h, w)."""
    width, height = (side // model.vae_scale_factor for side in size)
    shape = (1, model.latent_channels, height, width)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


@contextlib.contextmanager
def evaluation(model: Any, networks: Sequence[Any]) -> Iterator[None]:
    """Everything in eval mode, and back to what it was; random states are kept."""
    modules: list[nn.Module] = [*model.components().values(), *networks]
    training = [module.training for module in modules]
    device = next(model.denoiser.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module in modules:
                module.eval()
            yield
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.train(mode)
