"""Side inputs of validation images: a person's files, or those of the dataset's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from modules.batch import Sample
from modules.dataset_files import read_array
from modules.images import Size, open_image, to_tensor

_ARRAYS = (".npz", ".npy")


def spread(count: int, total: int) -> list[int]:
    """`count` indices evenly over `total`, from the first on; fewer if there aren't as many."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def find_guides(
    keys: Sequence[str],
    files: Mapping[str, Sequence[str]],
    samples: Sequence[Sample],
    *,
    sizes: Sequence[Size],
    own_files: Sequence[Mapping[str, str]] | None = None,
) -> list[dict[str, Tensor]]:
    """What is asked for under `keys`, for the picture beside each of `samples`.

    A picture's own file goes before those of `files`, and these before what the dataset's sample
    has. Images are scaled and cropped to the picture's of `sizes` (width, height).

    Raises:
        ValueError: there are neither one file nor as many as prompts, or one can't be read.
    """
    guides: list[dict[str, Tensor]] = [{} for _ in samples]
    for key in keys:
        chosen: list[str | None] = [None] * len(samples)
        if key in files:
            chosen = list(_one_each(key, files[key], len(samples)))
        shapes = []
        for number, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
            file = own_files[number].get(key, chosen[number]) if own_files else chosen[number]
            value = side_inputs(sample, [key])[key] if file is None else _read(Path(file))
            shapes.append((3,) if _is_image(value) else tuple(value.shape))
            guides[number][key] = fit(value, size) if _is_image(value) else value
        if len(set(shapes)) > 1:
            found = ", ".join(str(tuple(guide[key].shape)) for guide in guides)
            raise ValueError(f"extras.{key}: they differ in shape: {found}")
    return guides


def whole_sample(dataset: Any, index: int) -> Sample:
    """An image of a dataset, without what chance does to it, where the dataset can tell."""
    return getattr(dataset, "whole_sample", dataset.__getitem__)(index)


def side_inputs(sample: Sample, keys: Sequence[str]) -> dict[str, Tensor]:
    """What an image of a dataset has under `keys`; `mask` is its mask.

    Raises:
        ValueError: it has no such thing, though the dataset says that it provides it.
    """
    found = dict(sample.extras)
    if sample.mask is not None:
        found.setdefault("mask", sample.mask)
    for key in keys:
        if key not in found:
            raise ValueError(f"{sample.name}: has no {key!r}, which the dataset says it provides")
    return {key: found[key] for key in keys}


def fit(image: Tensor, size: Size) -> Tensor:
    """Scale an image (3, H, W) to cover `size` (width, height) and crop its middle."""
    width, height = size
    before = tuple(image.shape[1:])
    scale = max(height / before[0], width / before[1])
    covering = (max(height, round(before[0] * scale)), max(width, round(before[1] * scale)))
    if covering != before:
        image = functional.interpolate(image[None], covering, mode="bilinear", antialias=True)[0]
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def stack(guides: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The guides of pictures of one size as those of a batch, a row for each."""
    return {key: torch.stack([guide[key] for guide in guides]) for key in guides[0]}


def picture(guide: Tensor) -> Image.Image | None:
    """A guide to be looked at, if it is an image."""
    return Image.fromarray(_to_bytes(guide)) if _is_image(guide) else None


def _one_each(key: str, files: Sequence[str], count: int) -> Sequence[str]:
    if len(files) == 1:
        return list(files) * count
    if len(files) != count:
        raise ValueError(
            f"extras.{key}: {len(files)} files for {count} prompts; give one for each, or one for "
            "all"
        )
    return files


def _read(path: Path) -> Tensor:
    if path.suffix.lower() in _ARRAYS:
        return read_array(path)
    return to_tensor(open_image(path), minimum=0.0)


def _is_image(value: Tensor) -> bool:
    return value.ndim == 3 and value.shape[0] == 3


def _to_bytes(image: Tensor) -> Any:
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
