"""Validation images, drawn through the same model and networks as training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.grids import make_sheet
from modules.guides import find_guides, pictures, spread
from modules.protocols import Run
from modules.schedule import Every
from modules.token_merging import whole_tokens

logger = logging.getLogger(__name__)


class GridSampler:
    """Draws every prompt at due steps: one grid each, and `before_after.png` at the end.

    Args:
        prompts: a list, or a text file with one prompt in each line (# begins a comment); None
            takes the captions of `num_images` images of the dataset.
        extras: files for what networks ask for, one for each prompt or one for all; without them
            the dataset's images serve.
        tome: merge tokens, if training does.
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
        prompts: list[str] | str | None = None,
        num_images: int = 4,
        extras: Mapping[str, Sequence[str]] | None = None,
        negative_prompt: str = "",
        width: int = 512,
        height: int = 512,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        tome: bool = False,
        seed: int = 0,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_start: bool = True,
        batch_size: int = 4,
    ):
        self.prompts = read_prompts(prompts) if isinstance(prompts, str) else list(prompts or ())
        if not self.prompts and prompts is not None:
            raise ValueError(f"prompts: {prompts} has no prompt in it")
        self.num_images = num_images
        self.tome = tome
        self.negative_prompt = negative_prompt
        self.width, self.height = width, height
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.seed = seed
        self.at_start = at_start
        self.batch_size = batch_size
        self._files = dict(extras or {})
        self._guides: dict[str, Tensor] = {}
        self._every = Every(steps=every_steps, epochs=every_epochs)
        self._before: list[Image.Image] | None = None

    def prepare(self, *, model: Any, networks: Mapping[str, Any], dataset: Any) -> None:
        """Take from the dataset what is not given, and check that all of it fits the model.

        Raises:
            ValueError: the model can't draw images of this size, or there is no guide for one.
        """
        for name, side in (("width", self.width), ("height", self.height)):
            if side % model.size_multiple:
                raise ValueError(
                    f"{name}: {side} is no multiple of {model.size_multiple}, which "
                    "this model's images must be"
                )
        asks = {name: list(getattr(net, "requires", ())) for name, net in networks.items()}
        asked = list(dict.fromkeys(key for keys in asks.values() for key in keys))
        for key in self._files:
            if key not in asked:
                raise ValueError(f"extras.{key}: no network asks for {key!r}")
        indices = spread(len(self.prompts) or self.num_images, len(dataset))
        if not self.prompts:
            self.prompts = [whole_caption(dataset, index) for index in indices]
        indices = [indices[n % len(indices)] for n in range(len(self.prompts))]
        size = (self.width, self.height)
        self._guides = find_guides(asked, self._files, dataset, indices, size=size)
        for name, network in networks.items():
            if asks[name] and hasattr(network, "check_extras"):
                network.check_extras({key: self._guides[key][0] for key in asks[name]})

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw and write the grid of this step, if one is due."""
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or (run.step == 0 and self.at_start)):
            return
        images = self.draw(run)
        folder = run.directory / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step{run.step:08d}.png"
        guides = pictures(self._guides)
        titles = [*guides, ""] if guides else [""]
        make_sheet([*guides.values(), images], titles, self.prompts).save(path)
        run.log_images("samples", images, self.prompts)
        if run.step == 0:
            self._before = images
        if last and self._before:
            path = run.directory / "before_after.png"
            columns = [*guides.values(), self._before, images]
            make_sheet(columns, [*guides, "before", "after"], self.prompts).save(path)
        logger.info("images: %s", path)

    def draw(self, run: Run) -> list[Image.Image]:
        """Pictures of all prompts by the model as it is now."""
        images: list[Image.Image] = []
        for start in range(0, len(self.prompts), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            prompts = self.prompts[chosen]
            seeds = [self.seed + start + n for n in range(len(prompts))]
            with run.sampled_weights():
                images += draw_images(
                    run.model,
                    list(run.networks.values()),
                    prompts=prompts,
                    negative_prompt=self.negative_prompt,
                    extras={key: guides[chosen] for key, guides in self._guides.items()},
                    seeds=seeds,
                    size=(self.width, self.height),
                    num_inference_steps=self.num_inference_steps,
                    guidance_scale=self.guidance_scale,
                    tome=self.tome,
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
    extras: Mapping[str, Tensor] | None = None,
    negative_prompt: str = "",
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    tome: bool = False,
    autocast: Any = contextlib.nullcontext,
) -> list[Image.Image]:
    """Draw one image for each prompt with DDIM (Song et al. 2020, arXiv:2010.02502).

    `extras` holds what networks ask for, a row for each prompt. The starting noise comes from a CPU
    generator of each image's own seed, so that it does not depend on the device or on the other
    prompts; no other random state is touched.
    """
    device = next(model.denoiser.parameters()).device
    scheduler = make_sampling_scheduler(model.scheduler)
    scheduler.set_timesteps(num_inference_steps, device=device)
    latents = starting_noise(model, seeds, size).to(device) * scheduler.init_noise_sigma
    guided = guidance_scale != 1.0
    batch = guided_batch(prompts, negative_prompt if guided else None, extras or {}).to(device)
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
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    return model.decode(latents)


def make_sampling_scheduler(scheduler: Any) -> DDIMScheduler:
    """DDIM over a model's schedule; one that ends in noise alone is sampled from its very end."""
    config = scheduler.config
    changes = {"timestep_spacing": "trailing"} if config.get("rescale_betas_zero_snr") else {}
    return DDIMScheduler.from_config(config, **changes)


def guided_batch(
    prompts: Sequence[str], negative_prompt: str | None, extras: Mapping[str, Tensor]
) -> Batch:
    """The batch of one denoiser call: negative prompts first, if there is guidance."""
    if negative_prompt is None:
        return Batch(captions=list(prompts), extras=extras)
    count = len(prompts)
    return Batch(
        captions=[*[negative_prompt] * count, *prompts],
        extras={key: torch.cat([values, values]) for key, values in extras.items()},
        is_negative=torch.arange(2 * count) < count,
    )


def whole_caption(dataset: Any, index: int) -> str:
    """An image's caption, without what chance does to it."""
    caption = getattr(dataset, "whole_caption", None)
    return caption(index) if caption else dataset[index].caption


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
