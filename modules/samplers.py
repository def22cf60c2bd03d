"""Validation images: when they are due, of what, and where they go."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from modules.drawing import draw_images
from modules.grids import make_sheet
from modules.guides import find_guides, pictures, spread, whole_sample
from modules.protocols import Run
from modules.schedule import Every

logger = logging.getLogger(__name__)


class GridSampler:
    """Draws every prompt at due steps: one grid each, and `before_after.png` at the end.

    Args:
        prompts: a list, or a text file with one prompt in each line (# begins a comment); None
            takes the captions of `num_images` images of the dataset.
        extras: files for what networks ask for, and an inpainting model (`picture`, `inpaint`), one
            for each prompt or one for all; without them the dataset's images serve.
        tome: merge tokens, if training does.
        width, height: pixels; multiples of what the model divides by; None is the size of the
            images that it was made for.
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
        width: int | None = None,
        height: int | None = None,
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
        self._asked_size = width, height
        self.size = (0, 0)  # width, height, once the model is known
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
        self.size = model.image_size(*self._asked_size)
        asking = [model.side_channels, *networks.values()]
        asks = [list(getattr(one, "requires", ())) for one in asking]
        asked = list(dict.fromkeys(key for keys in asks for key in keys))
        for key in self._files:
            if key not in asked:
                raise ValueError(f"extras.{key}: no network asks for {key!r}")
        indices = spread(len(self.prompts) or self.num_images, len(dataset))
        if not self.prompts:
            self.prompts = [whole_caption(dataset, index) for index in indices]
        indices = [indices[n % len(indices)] for n in range(len(self.prompts))]
        samples = [whole_sample(dataset, n) for n in indices] if asked else []
        samples = [model.side_channels.complete(sample) for sample in samples]
        self._guides = find_guides(asked, self._files, samples, size=self.size)
        for one, keys in zip(asking, asks, strict=True):
            if keys and hasattr(one, "check_extras"):
                one.check_extras({key: self._guides[key][0] for key in keys})

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw and write the grid of this step, if one is due."""
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or (run.step == 0 and self.at_start)):
            return
        images = self.draw(run)
        folder = run.directory / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step{run.step:08d}.png"
        guides = pictures(run.model.side_channels.shown(self._guides))
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
                    size=self.size,
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


def whole_caption(dataset: Any, index: int) -> str:
    """An image's caption, without what chance does to it."""
    caption = getattr(dataset, "whole_caption", None)
    return caption(index) if caption else dataset[index].caption
