"""Datasets: an image's latents or pixels with its caption and side inputs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from modules.buckets import Size
from modules.dataset_files import list_names
from modules.dataset_folder import find_dataset_images, flipped_folder
from modules.images import open_image, read_size, to_tensor
from modules.latent_folder import LatentFolder
from modules.prepared_dataset import PreparedDataset
from modules.side_inputs import Grid, describe_missing
from modules.store import refuse_remote
from modules.transform import Transform

_LATENTS = "latents"
_FLIPPED = flipped_folder(Path(_LATENTS)).name


class LatentDataset(PreparedDataset):
    """Cached latents: latents/<name>.npy, which preprocess/latent.py makes, or packed ones.

    Or the moments to draw them from, in each step others (`modules/moments.py`).
    Of mirrored images, latents_flipped/<name>.npy: a VAE makes other latents of them, not mirrored
    ones. Nothing else can be done to cached latents.
    """

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        folder = self._folders[_FLIPPED if transform.is_flipped else _LATENTS]
        return {"latents": folder.read(name)}  # (C, h, w) or (2C, h, w)

    def image_files(self) -> Iterator[str]:
        """Yield the path of every file with latents, within the dataset."""
        for folder in self._folders.values():
            yield from folder.files()

    def missing_images(self) -> Iterator[str]:
        for setting in self.augmentation.changes():
            if setting != "flip":
                yield (
                    f"{setting}: cached latents can be mirrored only; write "
                    f"`module: modules.dataset.ImageDataset`, or take {setting} out"
                )
        for folder in self._folders.values():
            if missing := folder.missing:
                yield describe_missing(
                    folder.name, missing, total=len(self), advice=f"run {folder.maker}"
                )
        if self.augmentation.flip and (strange := self._find_strange()):
            yield (
                f"{_FLIPPED}: {len(strange)} of {len(self)} are of another VAE, precision, "
                f"posterior or image than those in {_LATENTS}: {list_names(strange)}; run "
                f"{self._folders[_FLIPPED].maker}"
            )

    def noted_folders(self) -> list[str]:
        return [*self._folders, *super().noted_folders()]

    def knows_shape(self, name: str) -> bool:
        return all(folder.is_packed(name) for folder in self._folders.values())

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        channels, *sides = grid
        for folder in self._folders.values():
            shape = folder.shape(name)
            known = channels, 2 * channels  # of latents, of their moments
            if shape[1:] == tuple(sides) and len(shape) == 3 and shape[0] not in known:
                found = f"has {shape[0]} channels, the model's latents have {channels} and their "
                found += f"moments {2 * channels}: it"
                return folder.file(name), found, f"{folder.maker} with the run's model"
            if shape not in [(count, *sides) for count in known]:
                return folder.file(name), f"shape {shape}", folder.maker
        return None

    @cached_property
    def _folders(self) -> dict[str, LatentFolder]:
        """Where latents are read from."""
        makers = {_LATENTS: "preprocess/latent.py"}
        if self.augmentation.flip:
            makers[_FLIPPED] = "preprocess/latent.py --flip"
        return {
            name: LatentFolder(self.store, name, self.names, maker=maker)
            for name, maker in makers.items()
        }

    def _find_strange(self) -> list[str]:
        """Name images whose two latents were not made alike, by the notes of their script."""
        plain, mirrored = self.notes[:2]
        return [self.names[number] for number in np.flatnonzero(plain.differs(mirrored)).tolist()]


class ImageDataset(PreparedDataset):
    """Pixels: images/<name>.png, which preprocess/bucketing.py makes.

    The VAE, if the model has one, encodes them while training.
    """

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        pixel_values = to_tensor(open_image(self._files[name]))  # (3, H, W)
        return {"pixel_values": transform.picture(pixel_values)}

    def image_files(self) -> Iterator[str]:
        """Yield the path of every image, within the dataset."""
        return (self._files[name].relative_to(self.path).as_posix() for name in self.names)

    def missing_images(self) -> Iterator[str]:
        missing = [name for name in self.names if name not in self._files]
        if missing:
            advice = "run preprocess/bucketing.py"
            yield describe_missing("images", missing, total=len(self), advice=advice)

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        if (found := read_size(self._files[name])) == size:
            return None
        file = self._files[name].relative_to(self.path).as_posix()
        return file, f"size {found}", "preprocess/bucketing.py"

    @cached_property
    def _files(self) -> dict[str, Path]:
        refuse_remote(self.store, ["modules.dataset.ImageDataset"])
        return find_dataset_images(self.path, self.names)
