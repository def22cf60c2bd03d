"""What lies beside the images of a dataset: masks, guides, features."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from modules.dataset_files import Kind, SideInput, list_names, read_mask
from modules.images import Size
from modules.transform import Transform

logger = logging.getLogger(__name__)

Grid = tuple[int, int, int]  # C, h, w of an image as the denoiser works on it


class SideInputs:
    """The masks and the `extras` of images; images go the way of their image, arrays stay.

    Raises:
        ValueError: one of `extras` has no name for a folder, or is of no known kind.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        *,
        mask: bool = False,
        normalize_mask: bool = False,
        extras: Mapping[str, Kind] | None = None,
    ):
        self._directory = directory
        self._names = names
        self._mask = SideInput(directory, "mask", "npz") if mask else None
        self._is_normalized = normalize_mask
        self._extras = [SideInput(directory, key, kind) for key, kind in (extras or {}).items()]

    @property
    def keys(self) -> frozenset[str]:
        """What there is beside an image."""
        keys = {extra.key for extra in self._extras}
        return frozenset(keys | {"mask"} if self._mask else keys)

    def files(self) -> Iterator[str]:
        """Yield the path of every file, within the dataset."""
        for side in (*([self._mask] if self._mask else []), *self._extras):
            yield from (side.file(name) for name in self._names if name in side)

    def read_mask(self, name: str, transform: Transform) -> Tensor | None:
        """Return an image's mask, (1, h, w), or None if it has none.

        Raises:
            ValueError: some weights are not within 0 and 1.
        """
        if self._mask is None or name not in self._mask:
            return None
        mask = transform.follow(read_mask(self._mask, name))
        return mask / mask.mean().clamp(min=1e-6) if self._is_normalized else mask

    def read_extras(self, name: str, transform: Transform) -> dict[str, Tensor]:
        """Return an image's guides, (3, H, W) in 0..1, and arrays as they stand."""
        values = {extra.key: extra.read(name) for extra in self._extras}
        guides = {extra.key for extra in self._extras if extra.kind == "image"}
        return {k: transform.follow(v) if k in guides else v for k, v in values.items()}

    def find_misfits(self, name: str, size: Size, grid: Grid) -> Iterator[tuple[str, str, str]]:
        """Yield (file, its shape or size in words, what made it) of files that don't fit."""
        if self._mask and name in self._mask:
            shape = self._mask.shape(name)
            if shape not in (grid[1:], (1, *grid[1:])):
                factor = size[0] // grid[2]
                maker = f"preprocess/create_mask.py --scale_factor {factor}"
                yield self._mask.file(name), f"shape {shape}", maker
        for extra in self._extras:
            if extra.kind == "image" and (found := extra.size(name)) != size:
                yield extra.file(name), f"size {found}", "its script"

    def find_odd_shapes(self, names: Sequence[str]) -> Iterator[str]:
        """Yield a fault for each array of `names` of another shape than the first of its kind."""
        for extra in self._extras:
            yield from extra.find_odd_shapes(names)

    def find_missing(self) -> Iterator[str]:
        """Yield a fault for every kind of file that images lack; say which have no mask."""
        for extra in self._extras:
            missing = [name for name in self._names if name not in extra]
            if missing:
                advice = f"add them to {extra.key}/ or take {extra.key} out of extras"
                yield self._describe(extra.key, missing, advice)
        if self._mask is not None:
            mask = self._mask
            missing = [name for name in self._names if name not in mask]
            if len(missing) == len(self._names):
                yield self._describe("mask", missing, "run preprocess/create_mask.py")
            elif missing:
                found = self._describe("mask", missing, "these images count fully")
                logger.warning("%s: %s", self._directory, found)

    def _describe(self, kind: str, missing: Sequence[str], advice: str) -> str:
        return describe_missing(kind, missing, total=len(self._names), advice=advice)


def describe_missing(kind: str, missing: Sequence[str], *, total: int, advice: str) -> str:
    """Say which images lack what."""
    return f"{kind}: {len(missing)} of {total} missing: {list_names(missing)}; {advice}"
