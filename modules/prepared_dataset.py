"""The directory that preprocess/ makes: buckets, captions, masks and side inputs of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from modules.batch import Sample
from modules.buckets import BucketIndex, Size
from modules.caption_set import CaptionSet
from modules.caption_text import CaptionProcessor
from modules.dataset_files import (
    Kind,
    SideInput,
    list_names,
    raise_faults,
    read_geometry,
    read_mask,
    read_origin,
)
from modules.repeats import FOLDERS, Repeats
from modules.text_cache import open_text_cache

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)

Grid = tuple[int, int, int]  # C, h, w of an image as the denoiser works on it


class PreparedDataset(Dataset[Sample]):
    """What is read of a prepared directory beside the images: buckets.json, captions, side inputs.

    A subclass says what is read of an image.

    `len` counts images; those that `repeats` lets come again in an epoch have further indices in
    `buckets`.
    Captions are as `modules.caption_text.CaptionProcessor` says; `prompt` stands for all of them.
    `extras` names the side inputs: `{control: image}` reads control/<name>.png as (3, H, W) in
    0..1, `{pfg: npz}` the array in pfg/<name>.npz.
    `normalize_mask` divides each mask by its mean, so that an image of which little is trained
    counts as much as others. `text_cache` reads the text encoders' outputs from text/ where all
    captions are as cached.

    Raises:
        ValueError: an argument is wrong or files are missing; lists all that is.
    """

    def __init__(
        self,
        path: str,
        *,
        metadata: str = "buckets.json",
        repeats: int | Literal["folders"] = 1,
        prefix: str = "",
        suffix: str = "",
        prompt: str | None = None,
        trigger_word: str = "",
        caption_dropout: float = 0.0,
        tag_dropout: float = 0.0,
        shuffle_caption: bool = False,
        keep_tokens: int = 0,
        keep_tokens_separator: str = "",
        tag_separator: str = ",",
        wildcards: bool = False,
        mask: bool = False,
        normalize_mask: bool = False,
        extras: Mapping[str, Kind] | None = None,
        allow_missing_captions: bool = False,
        text_cache: bool = False,
        seed: int = 0,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such directory")
        process = CaptionProcessor(
            prefix=prefix,
            suffix=suffix,
            trigger_word=trigger_word,
            shuffle=shuffle_caption,
            keep_tokens=keep_tokens,
            keep_tokens_separator=keep_tokens_separator,
            tag_separator=tag_separator,
            tag_dropout=tag_dropout,
            caption_dropout=caption_dropout,
            wildcards=wildcards,
        )
        self.names: list[str] = []
        self._images: list[range] = []  # of each bucket, by number
        self.bucket_sizes: list[Size] = []
        for size, names in BucketIndex.load(self.path / metadata).buckets.items():
            if names:
                self.bucket_sizes.append(size)
                self._images.append(range(len(self.names), len(self.names) + len(names)))
                self.names.extend(names)
        self.repeats = Repeats(self.path, self.names, repeats)
        self.buckets = [self.repeats.spread(images) for images in self._images]  # indices
        # Workers that live longer than an epoch see it change, since they share this memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._mask = SideInput(self.path, "mask", "npz") if mask else None
        self._normalize_mask = normalize_mask
        self._extras = [SideInput(self.path, key, kind) for key, kind in (extras or {}).items()]
        self._geometry: np.ndarray | None = None
        self.captions = CaptionSet(
            self.path,
            self.names,
            process=process,
            prompt=prompt,
            by_folder=repeats == FOLDERS,
            seed=seed,
        )
        faults = [*self._find_missing_files()]
        if not allow_missing_captions:
            faults += self._find_missing_captions()
        raise_faults(self.path, faults)
        self._text = (
            open_text_cache(self.path / "text", self.names, self.captions) if text_cache else None
        )

    @property
    def provides(self) -> frozenset[str]:
        """Name what samples hold beside latents and caption, for networks to ask for."""
        keys = {extra.key for extra in self._extras}
        return frozenset(keys | {"mask"} if self._mask else keys)

    def read_geometry(self) -> bool:
        """Let samples tell the sizes and crops of images from now on; say if they are known."""
        self._geometry = read_geometry(self.path, self.names)
        return self._geometry is not None

    def __len__(self) -> int:
        return len(self.names)

    def read_image(self, name: str) -> dict[str, Tensor]:
        """Return an image as fields of `Sample`."""
        raise TypeError(f"{type(self).__name__} reads no images")

    def missing_images(self) -> Iterator[str]:
        """Yield a fault for files of images that are missing."""
        raise TypeError(f"{type(self).__name__} reads no images")

    def image_misfit(self, name: str, size: Size, grid: Grid) -> tuple[str, str, str] | None:
        """Return an image's file, what is wrong with it, and whose work it is, if it doesn't fit.

        `size` (width, height) is its bucket's, `grid` (C, h, w) what the model makes of that.
        """
        raise TypeError(f"{type(self).__name__} reads no images")

    def __getitem__(self, index: int) -> Sample:
        number = index % len(self.names)
        name = self.names[number]
        geometry = None if self._geometry is None else self._geometry[number].tolist()
        caption = self.caption(index)
        return Sample(
            name=name,
            caption=caption,
            mask=self._read_mask(name),
            original_size=geometry and (geometry[0], geometry[1]),
            crop_top_left=geometry and (geometry[2], geometry[3]),
            text=self._text.read(name, caption) if self._text else {},
            extras={extra.key: extra.read(name) for extra in self._extras},
            **self.read_image(name),  # type: ignore[arg-type]
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random captions are drawn."""
        self._epoch.fill_(epoch)

    def caption(self, index: int) -> str:
        """Return the final caption of an image in the current epoch."""
        return self.captions.draw(index, int(self._epoch))

    def whole_caption(self, index: int) -> str:
        """Return an image's caption with nothing left to chance."""
        return self.captions.whole(index)

    def summary(self) -> list[str]:
        """Describe the dataset in a few lines: buckets, captions, three final captions."""
        counts = zip(self.bucket_sizes, self._images, strict=True)
        lines = ["images per bucket: " + ", ".join(f"{w}x{h}: {len(b)}" for (w, h), b in counts)]
        return lines + self.repeats.summary() + self.captions.summary(int(self._epoch))

    def origin(self, key: str) -> dict[str, Any]:
        """Return what made the side input `key`, as its script noted: tagger, sha256, features."""
        return read_origin(self.path / key)

    def check_latent_shapes(self, vae_scale_factor: int, latent_channels: int) -> None:
        """Compare images, masks and side images with their buckets, by their headers alone.

        Raises:
            ValueError: lists those that differ.
        """
        faults = []
        for size, images in zip(self.bucket_sizes, self._images, strict=True):
            height, width = size[1] // vae_scale_factor, size[0] // vae_scale_factor
            for number in images:
                for file, found, maker in self._find_misfits(
                    self.names[number], size, (latent_channels, height, width)
                ):
                    faults.append(
                        f"{file}: {found} is not bucket {size}; run {maker} again after bucketing"
                    )
        for extra in self._extras:
            faults += extra.find_odd_shapes(self.names)
        raise_faults(self.path, faults)

    def _find_misfits(self, name: str, size: Size, grid: Grid) -> Iterator[tuple[str, str, str]]:
        """Yield (file, its shape or size in words, what made it) of files that don't fit."""
        misfit = self.image_misfit(name, size, grid)
        if misfit is not None:
            yield misfit
        if self._mask and name in self._mask:
            shape = self._mask.shape(name)
            if shape not in (grid[1:], (1, *grid[1:])):
                factor = size[0] // grid[2]
                maker = f"preprocess/create_mask.py --scale_factor {factor}"
                yield self._mask.file(name), f"shape {shape}", maker
        for extra in self._extras:
            if extra.kind == "image" and (found := extra.size(name)) != size:
                yield extra.file(name), f"size {found}", "its script"

    def check_text_cache(self, model: DiffusionModel, networks: Mapping[str, Any]) -> None:
        """Check that cached text is what `model` with `networks` would make of the captions.

        Raises:
            ValueError: a text encoder is trained or changed, or the model is another one.
        """
        if self._text is not None:
            self._text.check(model, networks)

    def _read_mask(self, name: str) -> Tensor | None:
        if self._mask is None or name not in self._mask:
            return None
        return read_mask(self._mask, name, normalize=self._normalize_mask)

    def _find_missing_files(self) -> Iterator[str]:
        """Yield a fault for every kind of file that images lack."""
        yield from self.missing_images()
        for extra in self._extras:
            missing = [name for name in self.names if name not in extra]
            if missing:
                advice = f"add them to {extra.key}/ or take {extra.key} out of extras"
                yield self.describe(extra.key, missing, advice)
        if self._mask is not None:
            mask = self._mask
            missing = [name for name in self.names if name not in mask]
            if len(missing) == len(self):
                yield self.describe("mask", missing, "run preprocess/create_mask.py")
            elif missing:
                found = self.describe("mask", missing, "these images count fully")
                logger.warning("%s: %s", self.path, found)

    def _find_missing_captions(self) -> Iterator[str]:
        if missing := self.captions.missing:
            advice = "add captions/<name>.txt or .caption, or set allow_missing_captions: true"
            yield self.describe("captions", missing, advice)

    def describe(self, kind: str, missing: list[str], advice: str) -> str:
        """Say which images lack what."""
        return f"{kind}: {len(missing)} of {len(self)} missing: {list_names(missing)}; {advice}"
