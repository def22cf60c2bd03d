"""Datasets: an image's latents or pixels with its caption and side inputs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from modules.buckets import Size
from modules.dataset_files import list_names, read_array, read_shape
from modules.dataset_folder import find_dataset_images, flipped_folder
from modules.files import files_by_name
from modules.images import open_image, read_size, to_tensor
from modules.journal import Journal
from modules.prepared_dataset import PreparedDataset
from modules.side_inputs import Grid
from modules.transform import Transform

_LATENTS = Path("latents")
_FLIPPED = flipped_folder(_LATENTS)


class LatentDataset(PreparedDataset):
    """Cached latents: latents/<name>.npy, which preprocess/latent.py makes.

    Of mirrored images, latents_flipped/<name>.npy: a VAE makes other latents of them, not mirrored
    ones. Nothing else can be done to cached latents.
    """

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        folder = _FLIPPED if transform.is_flipped else _LATENTS
        return {"latents": read_array(self.path / folder / f"{name}.npy")}  # (C, h, w)

    def missing_images(self) -> Iterator[str]:
        for setting in self.augmentation.changes():
            if setting != "flip":
                yield (
                    f"{setting}: cached latents can be mirrored only; write "
                    f"`module: modules.dataset.ImageDataset`, or take {setting} out"
                )
        for folder, script in self._folders.items():
            latents = files_by_name(self.path / folder, (".npy",))
            if missing := [name for name in self.names if name not in latents]:
                yield self.describe(folder.name, missing, f"run {script}")
        if self.augmentation.flip and (strange := self._find_strange()):
            yield (
                f"{_FLIPPED}: {len(strange)} of {len(self)} are of another VAE, precision or image "
                f"than those in {_LATENTS}: {list_names(strange)}; run {self._folders[_FLIPPED]}"
            )

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        for folder, script in self._folders.items():
            file = folder / f"{name}.npy"
            if (shape := read_shape(self.path / file)) != grid:
                return file.as_posix(), f"shape {shape}", script
        return None

    @cached_property
    def _folders(self) -> dict[Path, str]:
        """Folders that latents are read from, and what makes them."""
        folders = {_LATENTS: "preprocess/latent.py"}
        if self.augmentation.flip:
            folders[_FLIPPED] = "preprocess/latent.py --flip"
        return folders

    def _find_strange(self) -> list[str]:
        """Name images whose two latents were not made alike, by the notes of their script."""
        notes = [Journal(self.path / folder / "index.jsonl").entries for folder in self._folders]
        plain, mirrored = ([_origin(note.get(name)) for name in self.names] for note in notes)
        pairs = zip(self.names, plain, mirrored, strict=True)
        return [name for name, one, other in pairs if one and other and one != other]


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


def _origin(note: Mapping[str, Any] | None) -> list[Any]:
    """What latents were made of, and by what; nothing if that isn't known."""
    return [note.get(key) for key in ("vae", "dtype", "image_sha256")] if note else []
