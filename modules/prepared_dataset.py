"""The directory that preprocess/ makes: buckets, captions, masks and side inputs of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from modules.augmentation import Augmentation
from modules.batch import Sample
from modules.buckets import BucketIndex, Size
from modules.cache_notes import CacheNotes
from modules.caption_set import CaptionSet
from modules.caption_text import CaptionProcessor
from modules.dataset_files import Kind, raise_faults, read_geometry, read_origin
from modules.image_records import ImageRecords
from modules.repeats import FOLDERS, Repeats
from modules.shape_check import find_odd_files
from modules.side_inputs import Grid, SideInputs
from modules.stale_files import check_freshness
from modules.store import open_store, refuse_remote
from modules.text_cache import open_text_cache
from modules.transform import Transform

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


class PreparedDataset(Dataset[Sample]):
    """What is read of a prepared directory beside the images: buckets.json, captions, side inputs.

    `path` is a directory or an address that fsspec knows. A subclass says what is read of images.
    `len` counts images; those that `repeats` lets come again have further indices in `buckets`.
    Captions are as `modules.caption_text.CaptionProcessor` says; `prompt` stands for all of them.
    `extras` names the side inputs: `{control: image}` reads control/<name>.png as (3, H, W) in
    0..1, `{pfg: npz}` the array in pfg/<name>.npz.
    `normalize_mask` divides each mask by its mean, so that an image of which little is trained
    counts as much as others. `text_cache` reads the text encoders' outputs from text/ where all
    captions are as cached; `allow_stale` trains on files of images that were edited since. `flip`
    to `color_jitter` are `modules.augmentation.Augmentation`'s, which masks and guides follow.

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
        allow_stale: bool = False,
        text_cache: bool = False,
        flip: float = 0.0,
        crop_jitter: float = 0.0,
        rotation: float = 0.0,
        color_jitter: float | list[float] = 0.0,
        seed: int = 0,
    ) -> None:
        self.store = open_store(path)
        self.path = Path(path)  # for what is read of local datasets only
        self.index_file, self.allow_stale = metadata, allow_stale
        local = {"mask": mask, "extras": extras, "text_cache": text_cache}
        refuse_remote(self.store, [feature for feature, value in local.items() if value])
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
        self.augmentation = Augmentation(
            flip=flip, crop_jitter=crop_jitter, rotation=rotation, color_jitter=color_jitter
        )
        self.names: list[str] = []
        self.images: list[range] = []  # of each bucket, by number
        self.bucket_sizes: list[Size] = []
        for size, names in BucketIndex.read(self.store, metadata).buckets.items():
            if names:
                self.bucket_sizes.append(size)
                self.images.append(range(len(self.names), len(self.names) + len(names)))
                self.names.extend(names)
        self.repeats = Repeats(self.path, self.names, repeats)
        self.buckets = [self.repeats.spread(images) for images in self.images]  # indices
        # Workers that live longer than an epoch see it change: they share this memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seed = seed
        self.side_inputs = SideInputs(
            self.path, self.names, mask=mask, normalize_mask=normalize_mask, extras=extras
        )
        self.geometry: np.ndarray | None = None
        by_folder = repeats == FOLDERS
        self.captions = CaptionSet(
            self.store, self.names, process=process, prompt=prompt, by_folder=by_folder, seed=seed
        )
        self.notes = [CacheNotes(self.store, each, self.names) for each in self.noted_folders()]
        texts = () if allow_missing_captions else self.captions.find_missing()
        raise_faults(self.store, [*self.missing_images(), *self.side_inputs.find_missing(), *texts])
        check_freshness(self)
        self.text = open_text_cache(self) if text_cache else None

    @property
    def provides(self) -> frozenset[str]:
        """Name what samples hold beside latents and caption, for networks to ask for."""
        return self.side_inputs.keys

    @cached_property
    def records(self) -> ImageRecords:
        """What images.jsonl says of the images."""
        return ImageRecords(self.store, self.names)

    def noted_folders(self) -> list[str]:
        """Name the folders of files that were made of images, as their scripts note."""
        return sorted(self.provides)

    def read_geometry(self) -> bool:
        """Let samples tell the sizes and crops of images from now on; say if they are known."""
        self.geometry = read_geometry(self.store, self.names)
        return self.geometry is not None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every image once; greater indices are those of repeats, so they don't end it."""
        return map(self.__getitem__, range(len(self)))

    def read_image(self, name: str, transform: Transform) -> dict[str, Tensor]:
        """Return an image, changed as `transform` says, as fields of `Sample`."""
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
        return self._read(index, self.caption(index), self.draw_transform(index))

    def whole_sample(self, index: int) -> Sample:
        """Return an image with nothing left to chance: to be looked at."""
        return self._read(index, self.whole_caption(index), Transform())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random captions and changes of images are drawn."""
        self._epoch.fill_(epoch)

    def caption(self, index: int) -> str:
        """Return the final caption of an image in the current epoch."""
        return self.captions.draw(index, int(self._epoch))

    def whole_caption(self, index: int) -> str:
        """Return an image's caption with nothing left to chance."""
        return self.captions.whole(index)

    def summary(self) -> list[str]:
        """Describe the dataset in a few lines: buckets, captions, three final captions."""
        counts = zip(self.bucket_sizes, self.images, strict=True)
        lines = ["images per bucket: " + ", ".join(f"{w}x{h}: {len(b)}" for (w, h), b in counts)]
        return lines + self.repeats.summary() + self.captions.summary(int(self._epoch))

    def origin(self, key: str) -> dict[str, Any]:
        """Return what made the side input `key`, as its script noted: tagger, sha256, features."""
        return read_origin(self.path / key)

    def knows_shape(self, name: str) -> bool:
        """Say whether `image_misfit` opens no file for an image."""
        return False

    def check_latent_shapes(self, vae_scale_factor: int, latent_channels: int) -> None:
        """Compare images, masks and side images with their buckets, as `find_odd_files` does.

        Raises:
            ValueError: lists those that differ.
        """
        raise_faults(self.store, [*find_odd_files(self, vae_scale_factor, latent_channels)])

    def check_every_shape(self, vae_scale_factor: int, latent_channels: int) -> None:
        """Do as `check_latent_shapes` with every file, however many there are."""
        sizes = (vae_scale_factor, latent_channels)
        raise_faults(self.store, [*find_odd_files(self, *sizes, most=len(self))])

    def check_text_cache(self, model: DiffusionModel, networks: Mapping[str, Any]) -> None:
        """Check that cached text is what `model` with `networks` would make of the captions.

        Raises:
            ValueError: a text encoder is trained or changed, or the model is another one.
        """
        if self.text is not None:
            self.text.check(model, networks)

    def draw_transform(self, index: int) -> Transform:
        """Return what is done to an image in the current epoch."""
        # Not of workers or a resume, and apart from other draws of this seed.
        rng = np.random.default_rng([self._seed, int(self._epoch), index, 0xA06])
        return self.augmentation.draw(rng)

    def _read(self, index: int, caption: str, transform: Transform) -> Sample:
        number = index % len(self)
        name = self.names[number]
        original, corner = None, None
        if self.geometry is not None:
            place = self.geometry[number].tolist()
            original, corner = transform.geometry(place, size=self._size(number))
        return Sample(
            name=name,
            caption=caption,
            mask=self.side_inputs.read_mask(name, transform),
            original_size=original,
            crop_top_left=corner,
            text=self.text.read(name, caption) if self.text else {},
            extras=self.side_inputs.read_extras(name, transform),
            **self.read_image(name, transform),  # type: ignore[arg-type]
        )

    def _size(self, number: int) -> Size:
        pairs = zip(self.bucket_sizes, self.images, strict=True)  # of each bucket
        return next(size for size, images in pairs if number in images)
