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
from modules.models.spaces import full_precision, to_pictures
from modules.protocols import Run
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
        self._before: tuple[list[Image.Image], list[float]] | None = None

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
        originals = to_each_picture(self.images.values())
        reconstructed, measured = self.reconstruct(run)
        labels = [f"{n}: {dB:.2f} dB" for n, dB in zip(self.images, measured, strict=True)]
        folder = run.directory / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step{run.step:08d}.png"
        sheet = make_sheet([originals, reconstructed], ["original", "reconstruction"], labels)
        sheet.save(path)
        mean = sum(measured) / len(measured)
        run.log_metrics({"psnr": mean})
        # One picture: trackers want those of one step in one size, which buckets are not.
        run.log_images("reconstructions", [sheet], [f"PSNR: {mean:.2f} dB"])
        if run.step == 0:
            self._before = reconstructed, measured
        if last and self._before:
            before, earlier = self._before
            path = run.directory / "before_after.png"
            pairs = zip(self.images, earlier, measured, strict=True)
            labels = [f"{name}: {a:.2f} -> {b:.2f} dB" for name, a, b in pairs]
            titles = ["original", "before", "after"]
            make_sheet([originals, before, reconstructed], titles, labels).save(path)
        logger.info("PSNR of %d reconstructions: %.2f dB; images: %s", len(measured), mean, path)

    @torch.no_grad()
    def reconstruct(self, run: Run) -> tuple[list[Image.Image], list[float]]:
        """Reconstructions by the posterior's mean, in full precision, and the PSNR of each."""
        vae = run.model.vae
        found = []
        with run.sampled_weights(), full_precision(vae.device):
            for image in self.images.values():
                posterior = vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist
                found.append(vae.decode(posterior.mode()).sample[0].float().cpu())
        pairs = zip(found, self.images.values(), strict=True)
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
