"""Datasets: an image's latents or pixels with its caption and side inputs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from modules.buckets import Size
from modules.dataset_files import read_array, read_shape
from modules.dataset_folder import find_dataset_images
from modules.files import files_by_name
from modules.images import open_image, read_size, to_tensor
from modules.prepared_dataset import PreparedDataset
from modules.side_inputs import Grid
from modules.transform import Transform


class LatentDataset(PreparedDataset):
    """Cached latents: latents/<name>.npy, which preprocess/latent.py makes."""

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        return {"latents": read_array(self.path / _latents_file(name))}  # (C, h, w)

    def missing_images(self) -> Iterator[str]:
        latents = files_by_name(self.path / "latents", (".npy",))
        missing = [name for name in self.names if name not in latents]
        if missing:
            yield self.describe("latents", missing, "run preprocess/latent.py")

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        if (shape := read_shape(self.path / _latents_file(name))) == grid:
            return None
        return _latents_file(name), f"shape {shape}", "preprocess/latent.py"


class ImageDataset(PreparedDataset):
    """Pixels: images/<name>.png, which preprocess/bucketing.py makes.

    The VAE, if the model has one, encodes them while training.
    """

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        pixel_values = to_tensor(open_image(self._files[name]))  # (3, H, W)
        return {"pixel_values": transform.picture(pixel_values)}

    def missing_images(self) -> Iterator[str]:
        missing = [name for name in self.names if name not in self._files]
        if missing:
            yield self.describe("images", missing, "run preprocess/bucketing.py")

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        if (found := read_size(self._files[name])) == size:
            return None
        file = self._files[name].relative_to(self.path).as_posix()
        return file, f"size {found}", "preprocess/bucketing.py"

    @cached_property
    def _files(self) -> dict[str, Path]:
        return find_dataset_images(self.path, self.names)


def _latents_file(name: str) -> str:
    return f"latents/{name}.npy"
