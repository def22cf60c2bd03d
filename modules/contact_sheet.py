"""Contact sheets: a dataset's images as they are trained on, each with what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from modules.batch import Sample
from modules.dataset_folder import find_dataset_images
from modules.files import replacing
from modules.guides import spread, whole_sample
from modules.held_out import HeldOut
from modules.images import open_image
from modules.models.pieces import load_vae
from modules.models.spaces import Latents, to_pictures
from modules.moments import mean_of
from modules.prepared_dataset import PreparedDataset
from modules.sheet_page import PER_PAGE, Card, draw_page

MOST = 100
"""Images that are drawn, spread over all buckets."""

_TINT = (124, 58, 237)


def draw_sheets(
    dataset: Any, path: Path, *, held_out: HeldOut, model: Any, vae: str, most: int = MOST
) -> list[Path]:
    """Draw images of a dataset's first epoch; pages after the first have -2 and so on behind the
    name. Returns the files.

    Pixels are those that the dataset gives, augmented ones too. Latents are shown by the images
    they were made of, or decoded by the model's VAE, whose weights are read from `vae` if need be.

    Raises:
        ValueError: an image can't be read, or `path` is of no kind of image.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path}: is no name of a picture; end it with .png or .jpg")
    chosen = list(_choose(dataset, most))
    maker = _Cards(dataset, held_out=held_out, model=model, vae=vae)
    pages = [chosen[start : start + PER_PAGE] for start in range(0, len(chosen), PER_PAGE)]
    written = []
    for number, page in enumerate(pages, start=1):
        title = str(getattr(dataset, "path", type(dataset).__name__))
        facts = f"{len(chosen)} of {len(dataset)} images"
        facts += f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        cards = [maker.make(*each) for each in page]
        if any(card.is_masked for card in cards):
            facts += "; tinted parts are masked and count less"
        sheet = draw_page(cards, title=title, facts=facts)
        file = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        with replacing(file) as temporary:
            sheet.save(temporary)
        written.append(file)
    return written


def _choose(dataset: Any, most: int) -> Iterator[tuple[int, int]]:
    """Yield (bucket, index) of images, from each bucket as many as its share, one at least."""
    total = len(dataset)
    buckets = [np.asarray(bucket, dtype=np.int64) for bucket in dataset.buckets]
    firsts = [bucket[bucket < total] for bucket in buckets]  # repeats are behind them
    for number, images in enumerate(firsts):
        share = max(1, round(most * len(images) / total)) if total > most else len(images)
        for place in spread(share, len(images)):
            yield number, int(images[place])


@dataclass(frozen=True)
class _Place:
    """Where a mixture's image comes from."""

    dataset: Any
    index: int


class _Cards:
    """Makes cards of a dataset's images."""

    def __init__(self, dataset: Any, *, held_out: HeldOut, model: Any, vae: str) -> None:
        self._dataset = dataset
        self._space: Any = getattr(model, "space", None)
        self._vae = vae
        self._files: dict[Path, dict[str, Path]] = {}
        total = len(dataset)
        self._times = _count(dataset.buckets, total)
        self._trained = _count(held_out.buckets, total)

    def make(self, bucket: int, index: int) -> Card:
        """Make the card of an image of a bucket."""
        sample, place = self._dataset[index], self._find(index)
        picture = self._draw(sample, place)
        sizes = getattr(self._dataset, "bucket_sizes", None)
        width, height = sizes[bucket] if sizes else picture.size
        times = int(self._times[index])
        return Card(
            picture=picture if sample.mask is None else tint(picture, sample.mask),
            name=sample.name,
            caption=sample.caption or self._explain(index),
            has_caption=bool(sample.caption),
            is_masked=sample.mask is not None,
            facts=f"{width}x{height}" + (f"   {times} times an epoch" if times > 1 else ""),
            warning=self._warn(place),
            is_held_out=not self._trained[index],
        )

    def _explain(self, index: int) -> str:
        """Say why there is no caption."""
        dropped = whole_sample(self._dataset, index).caption
        return "(caption dropped in this epoch)" if dropped else "(no caption)"

    def _find(self, index: int) -> _Place:
        place = _Place(self._dataset, index)
        while hasattr(place.dataset, "find_part"):
            part, own = place.dataset.find_part(place.index)
            place = _Place(part.dataset, own)
        return place

    def _draw(self, sample: Sample, place: _Place) -> Image.Image:
        if sample.pixel_values is not None:
            return to_pictures(sample.pixel_values[None])[0]
        assert sample.latents is not None, "a sample holds an image"
        if isinstance(place.dataset, PreparedDataset):
            part = place.dataset
            name = part.names[place.index % len(part)]
            if part.path not in self._files:
                local = part.path.is_dir()
                self._files[part.path] = find_dataset_images(part.path, part.names) if local else {}
            if file := self._files[part.path].get(name):
                picture = open_image(file)
                flipped = part.draw_transform(place.index).is_flipped
                return ImageOps.mirror(picture) if flipped else picture
        return self._decode(mean_of(sample.latents, self._space.channels))

    def _decode(self, latents: Tensor) -> Image.Image:
        space = self._space
        if any(parameter.is_meta for parameter in space.vae.parameters()):
            space = self._space = Latents(load_vae(self._vae))
        return space.decode(space.scale(latents[None].to(space.vae.dtype)))[0]

    def _warn(self, place: _Place) -> str:
        if not isinstance(place.dataset, PreparedDataset):
            return ""
        number = place.index % len(place.dataset)
        factor = place.dataset.records.enlargement()[number]
        return f"enlarged x{factor:.1f}" if factor > 1 else ""


def tint(picture: Image.Image, mask: Tensor) -> Image.Image:
    """Tint an image where its mask (1, h, w) is below 1: there it counts less."""
    weights = mask[0].clamp(0, 1).mul(255).round().byte().cpu().numpy()
    counts = Image.fromarray(weights).resize(picture.size, Image.Resampling.BILINEAR)
    grey = ImageOps.grayscale(picture).convert("RGB")
    idle = Image.blend(grey, Image.new("RGB", picture.size, _TINT), 0.45)
    return Image.composite(picture, idle, counts)


def _count(buckets: Sequence[Sequence[int]], total: int) -> np.ndarray:
    """How often each image stands in buckets."""
    indices = [np.asarray(bucket, dtype=np.int64) % total for bucket in buckets]
    return np.bincount(np.concatenate([*indices, np.zeros(0, np.int64)]), minlength=total)
