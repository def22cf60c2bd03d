"""Datasets: an image's latents or pixels with its caption and side inputs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules.buckets import Size
from modules.dataset_files import parse_array, parse_shape
from modules.dataset_folder import find_dataset_images
from modules.images import open_image, read_size, to_tensor
from modules.packed_latents import PackedLatents
from modules.prepared_dataset import Grid, PreparedDataset
from modules.store import refuse_remote


class LatentDataset(PreparedDataset):
    """Cached latents: latents/<name>.npy, which preprocess/latent.py makes, or packed ones.

    Where an image has both, the single file counts: it is newer.
    """

    def read_image(self, name: str) -> dict[str, Tensor]:
        if name in self._packed:
            array = self._packed.read(name).astype(np.float32)
            return {"latents": torch.from_numpy(array)}  # (C, h, w)
        file = _latents_file(name)
        try:
            return {"latents": parse_array(self.store.read(file), f"{self.store}/{file}")}
        except OSError as error:
            raise ValueError(f"{self.store}/{file}: can't be read ({error})") from error

    def missing_images(self) -> Iterator[str]:
        single = self.store.files_by_name("latents", (".npy",))
        self._packed.leave_out(single)
        missing = [name for name in self.names if name not in single and name not in self._packed]
        if missing:
            yield self.describe("latents", missing, "run preprocess/latent.py")

    def knows_shape(self, name: str) -> bool:
        return name in self._packed

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        is_packed = name in self._packed
        shape = self._packed.shape(name) if is_packed else self._read_shape(_latents_file(name))
        if shape == grid:
            return None
        file = f"{self._packed.file(name)}, {name}" if is_packed else _latents_file(name)
        return file, f"shape {shape}", "preprocess/latent.py"

    def _read_shape(self, file: str) -> tuple[int, ...]:
        return parse_shape(self.store.read(file, 0, 4096), f"{self.store}/{file}")

    @cached_property
    def _packed(self) -> PackedLatents:
        return PackedLatents(self.store, self.names)


class ImageDataset(PreparedDataset):
    """Pixels: images/<name>.png, which preprocess/bucketing.py makes.

    The VAE, if the model has one, encodes them while training.
    """

    def read_image(self, name: str) -> dict[str, Tensor]:
        return {"pixel_values": to_tensor(open_image(self._files[name]))}  # (3, H, W)

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
        refuse_remote(self.store, "modules.dataset.ImageDataset")
        return find_dataset_images(self.path, self.names)


def _latents_file(name: str) -> str:
    return f"latents/{name}.npy"
