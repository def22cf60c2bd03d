"""Validation of a VAE: images beside their reconstructions, and how near those come (PSNR)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modules.files import files_by_name
from modules.grids import make_sheet
from modules.guides import spread, whole_sample
from modules.images import IMAGE_SUFFIXES, open_image, to_tensor
from modules.mixed_precision import without_autocast
from modules.models.spaces import to_pictures
from modules.picture_settings import read_pngs, save_png
from modules.protocols import Run
from modules.samplers import grids_to_come
from modules.schedule import Every

logger = logging.getLogger(__name__)


class ReconstructionSampler:
    """Encodes and decodes a few images at due steps; `before_after.png` at the end.

    The mean PSNR goes to the metrics as `psnr`, that of each image stands below it.

    Args:
        num_images: how many, evenly over the dataset or the folder.
        pictures: a folder of images that are not trained on; None takes images of the dataset.
        every_epochs, every_steps: how often; the end of the run always gets a grid.
        at_start: also before training.
    """

    def __init__(
        self,
        *,
        num_images: int = 4,
        pictures: str | None = None,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_start: bool = True,
    ):
        self.num_images = num_images
        self.at_start = at_start
        self.images: dict[str, Tensor] = {}  # (3, H, W) in [-1, 1], by name
        self._files = {} if pictures is None else find_pictures(pictures)
        self._every = Every(steps=every_steps, epochs=every_epochs)
        self._earlier: list[float] = []  # PSNR before training
        self._was_asked = False

    def prepare(self, *, model: Any, networks: Mapping[str, Any], dataset: Any) -> None:
        """Choose the images; those of a folder are cropped to what the VAE can take.

        Raises:
            ValueError: one can't be read.
        """
        if self._files:
            names = sorted(self._files)
            for name in [names[index] for index in spread(self.num_images, len(names))]:
                image = to_tensor(open_image(self._files[name]))
                self.images[name] = crop(image, model.vae_scale_factor)
        else:
            indices = spread(self.num_images, len(dataset))
            for sample in [whole_sample(dataset, index) for index in indices]:
                assert sample.pixel_values is not None, "check_dataset has found pixels"
                self.images[sample.name] = sample.pixel_values

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Measure, and write the grid of this step, if one is due."""
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or (run.step == 0 and self.at_start)):
            return
        folder, compared = run.directory / "samples", run.directory / "before_after.png"
        path = folder / f"step{run.step:08d}.png"
        was_asked, self._was_asked = self._was_asked, True
        if not was_asked and path.exists() and (compared.exists() or not last):
            return  # a run that goes on had measured this step before it was stopped
        originals = to_each_picture(self.images.values())
        reconstructed, measured = self.reconstruct(run)
        labels = [f"{n}: {dB:.2f} dB" for n, dB in zip(self.images, measured, strict=True)]
        sheet = make_sheet([originals, reconstructed], ["original", "reconstruction"], labels)
        save_png(sheet, path)
        mean = sum(measured) / len(measured)
        run.log_metrics({"psnr": mean})
        # One picture: trackers want those of one step in one size, which buckets are not.
        run.log_images("reconstructions", [sheet], [f"PSNR: {mean:.2f} dB"])
        if run.step == 0:
            self._earlier = measured
            for number, image in enumerate(reconstructed):
                save_png(image, folder / path.stem / f"{number:02d}.png")
        before = read_pngs(folder / "step00000000", len(measured)) if last and run.step else None
        if before and self._earlier:
            pairs = zip(self.images, self._earlier, measured, strict=True)
            labels = [f"{name}: {a:.2f} -> {b:.2f} dB" for name, a, b in pairs]
            titles = ["original", "before", "after"]
            save_png(make_sheet([originals, before, reconstructed], titles, labels), compared)
            path = compared
        logger.info("PSNR of %d reconstructions: %.2f dB; images: %s", len(measured), mean, path)

    def rehearse(self, run: Run) -> int:
        """Reconstruct the first image and keep nothing; returns how many are to come."""
        self.reconstruct(run, most=1)
        grids = grids_to_come(run, self._every, at_start=self.at_start)
        return len(self.images) * grids

    def state_dict(self) -> dict[str, Any]:
        """What the comparison at the end needs, for a run that is resumed."""
        return {"earlier": self._earlier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._earlier = list(state["earlier"])

    @torch.no_grad()
    def reconstruct(
        self, run: Run, *, most: int | None = None
    ) -> tuple[list[Image.Image], list[float]]:
        """Reconstructions by the posterior's mean, in full precision, and the PSNR of each."""
        vae, images = run.model.vae, list(self.images.values())[:most]
        found = []
        with run.sampled_weights(), without_autocast(vae.device.type):
            for image in images:
                posterior = vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist
                found.append(vae.decode(posterior.mode()).sample[0].float().cpu())
        pairs = zip(found, images, strict=True)
        return to_each_picture(found), [psnr(*pair) for pair in pairs]


def psnr(reconstruction: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]: 10 log10(2^2 / mean squared error).

    What lies outside the range is cut off first, as in a picture; infinite for equal images.
    """
    error = (reconstruction.clamp(-1, 1) - image).square().mean()
    return (10 * torch.log10(4 / error)).item()


def crop(image: Tensor, multiple: int) -> Tensor:
    """The middle of an image (3, H, W) whose sides are multiples of this."""
    top, left = (side % multiple // 2 for side in image.shape[1:])
    height, width = (side - side % multiple for side in image.shape[1:])
    return image[:, top : top + height, left : left + width]


def find_pictures(folder: str) -> dict[str, Path]:
    """The image files of a folder by name.

    Raises:
        ValueError: there are none.
    """
    directory = Path(folder)
    found = files_by_name(directory, IMAGE_SUFFIXES) if directory.is_dir() else {}
    if not found:
        raise ValueError(f"pictures: {folder} is no folder with images in it")
    return {name: directory / f"{name}{suffix}" for name, suffix in found.items()}


def to_each_picture(images: Iterable[Tensor]) -> list[Image.Image]:
    """Pictures of images (3, H, W) in [-1, 1], whose sizes may differ."""
    return [picture for image in images for picture in to_pictures(image[None])]
