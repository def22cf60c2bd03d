"""Validation images: when they are due, of what, and where they go."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from modules.grids import make_sheet
from modules.guides import find_guides, picture, spread, stack, whole_sample
from modules.picture_batches import draw_pictures
from modules.picture_plan import SharedSettings, control_files, plan_pictures
from modules.picture_settings import PictureSettings, parameters_text, read_pngs, save_png
from modules.prompt_options import SamplePrompt
from modules.protocols import Run
from modules.sample_prompts import read_prompts
from modules.sampler_names import SamplerName
from modules.savers import DTYPES
from modules.schedule import Every

logger = logging.getLogger(__name__)


class GridSampler:
    """Draws every prompt at due steps: one grid each, and `before_after.png` at the end.

    Each image is also a file by itself, `step00000100/00.png` beside the grid. Their PNG text says
    how they were drawn, as AUTOMATIC1111's does.

    Args:
        prompts: a list of prompts, each text, with options behind it as sd-scripts has them
            (`a cat --n blurry --w 512 --ss euler`), or a mapping; or a file of such, .txt, .json
            or .toml (`modules.sample_prompts`). None takes the captions of `num_images` images of
            the dataset. What a prompt doesn't say of itself is as follows.
        extras: files for what networks ask for, and an inpainting model (`picture`, `inpaint`), one
            for each prompt or one for all; without them the dataset's images serve.
        sampler: how an image is drawn, of `modules.sampler_names`.
        tome: merge tokens, if training does.
        width, height: pixels; multiples of what the model divides by; None is the size of the
            images that it was made for.
        guidance_scale: classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        seed: of the first prompt; the next has one more.
        every_epochs, every_steps: how often; the end of the run always gets a grid.
        at_start: draw one before training.
        batch_size: images that are drawn at a time, if their settings allow.
        as_saved: draw with what is trained rounded to `save_dtype`, as the file will have it.
    """

    def __init__(
        self,
        *,
        prompts: list[str | dict[str, Any]] | str | None = None,
        num_images: int = 4,
        extras: Mapping[str, Sequence[str]] | None = None,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        sampler: SamplerName = "ddim",
        tome: bool = False,
        seed: int = 0,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_start: bool = True,
        batch_size: int = 4,
        as_saved: bool = False,
        save_dtype: str = "fp16",
    ):
        self.prompts = read_prompts(prompts)
        self.num_images = num_images
        self.tome = tome
        self.shared = SharedSettings(
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
        )
        self.at_start = at_start
        self.batch_size = batch_size
        self.weights = save_dtype if as_saved else None
        self.pictures: list[PictureSettings] = []  # of each prompt, once the model is known
        self._files = dict(extras or {})
        self._guides: list[dict[str, Tensor]] = []  # of each picture
        self._every = Every(steps=every_steps, epochs=every_epochs)
        self._was_asked = False

    def prepare(self, *, model: Any, networks: Mapping[str, Any], dataset: Any) -> None:
        """Take from the dataset what is not given, and check that all of it fits the model.

        Raises:
            ValueError: the model can't draw images so, or there is no guide for one.
        """
        asking = [model.side_channels, *networks.values()]
        asks = [list(getattr(one, "requires", ())) for one in asking]
        asked = list(dict.fromkeys(key for keys in asks for key in keys))
        for key in self._files:
            if key not in asked:
                raise ValueError(f"extras.{key}: no network asks for {key!r}")
        indices = spread(len(self.prompts) or self.num_images, len(dataset))
        if not self.prompts:
            self.prompts = [SamplePrompt(prompt=whole_caption(dataset, n)) for n in indices]
        self.pictures = plan_pictures(self.prompts, self.shared, model=model, networks=networks)
        own_files = control_files(self.prompts, networks)
        self._guides = [{} for _ in self.prompts]
        if asked:
            indices = [indices[n % len(indices)] for n in range(len(self.prompts))]
            samples = [whole_sample(dataset, n) for n in indices]
            self._guides = find_guides(
                asked,
                self._files,
                [model.side_channels.complete(sample) for sample in samples],
                sizes=[picture.size for picture in self.pictures],
                own_files=own_files,
            )
        for one, keys in zip(asking, asks, strict=True):
            if keys and hasattr(one, "check_extras"):
                one.check_extras({key: self._guides[0][key] for key in keys})

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw and write the grid of this step, if one is due."""
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or (run.step == 0 and self.at_start)):
            return
        folder, compared = run.directory / "samples", run.directory / "before_after.png"
        path = folder / f"step{run.step:08d}.png"
        was_asked, self._was_asked = self._was_asked, True
        if not was_asked and path.exists() and (compared.exists() or not last):
            return  # a run that goes on had drawn this step's before it was stopped
        images = self.draw(run)
        prompts = [picture.prompt for picture in self.pictures]
        further = origin(run) | ({"Weights": self.weights} if self.weights else {})
        texts = [parameters_text(picture, further=further) for picture in self.pictures]
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            save_png(image, path.with_suffix("") / f"{number:02d}.png", parameters=text)
        guides = self._shown_guides(run.model)
        titles = [*guides, ""] if guides else [""]
        sheet = make_sheet([*guides.values(), images], titles, prompts)
        save_png(sheet, path, parameters="\n\n".join(texts))
        run.log_images("samples", images, prompts)
        before = read_pngs(folder / "step00000000", len(images)) if last and run.step else None
        if before:
            columns = [*guides.values(), before, images]
            sheet = make_sheet(columns, [*guides, "before", "after"], prompts)
            save_png(sheet, compared, parameters="\n\n".join(texts))
            path = compared
        logger.info("images: %s", path)

    def rehearse(self, run: Run) -> int:
        """Draw the first picture and keep nothing; returns how many are to come."""
        draw_pictures(run, self.pictures[:1], self._guides[:1], batch_size=1, tome=self.tome)
        return len(self.pictures) * grids_to_come(run, self._every, at_start=self.at_start)

    def draw(self, run: Run) -> list[Image.Image]:
        """Pictures of all prompts by the model as it is now."""
        return draw_pictures(
            run,
            self.pictures,
            self._guides,
            batch_size=self.batch_size,
            tome=self.tome,
            dtype=DTYPES[self.weights] if self.weights else None,
        )

    def largest_batch(self) -> tuple[PictureSettings, int, dict[str, Tensor]]:
        """The largest picture, how many are drawn with it at most, and their guides."""
        sizes = [width * height for width, height in (each.size for each in self.pictures)]
        number = sizes.index(max(sizes))
        count = min(self.batch_size, len(sizes))
        guides = [self._guides[number]] * count
        return self.pictures[number], count, stack(guides) if self._guides else {}

    def _shown_guides(self, model: Any) -> dict[str, list[Image.Image]]:
        """Columns of the guides that are images, as they are to be looked at."""
        columns: dict[str, list[Image.Image]] = {}
        for guides in filter(None, self._guides):
            for key, (guide,) in model.side_channels.shown(stack([guides])).items():
                image = picture(guide)
                if image is not None:
                    columns.setdefault(key, []).append(image)
        return columns


def grids_to_come(run: Run, every: Every, *, at_start: bool) -> int:
    """How many grids are due, the last step's with them."""
    end, size = run.max_train_steps, run.steps_per_epoch
    due = every.count(after=run.step, to=end - 1, steps_per_epoch=size)
    return due + 1 + (at_start and run.step == 0)


def origin(run: Run) -> dict[str, Any]:
    """Of which model a picture is, for its file's text."""
    model, path = run.model, Path(run.model.path)
    own_skip = type(model).clip_skip
    name = path.stem if path.suffix in (".safetensors", ".ckpt") else path.name
    return {
        **({"Clip skip": model.clip_skip} if model.clip_skip != own_skip else {}),
        "Model": run.name if run.trained_base else name,
        "Run": run.name,
        "Training step": run.step,
    }


def whole_caption(dataset: Any, index: int) -> str:
    """An image's caption, without what chance does to it."""
    caption = getattr(dataset, "whole_caption", None)
    return caption(index) if caption else dataset[index].caption
