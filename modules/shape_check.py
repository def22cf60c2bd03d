"""Do a dataset's files have the shapes of their buckets? By their headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modules.buckets import Size
from modules.side_inputs import Grid

if TYPE_CHECKING:
    from modules.prepared_dataset import PreparedDataset

MOST_CHECKED = 20_000
"""Images whose files are opened when a run starts; `--check` opens all."""


def find_odd_files(
    dataset: PreparedDataset,
    vae_scale_factor: int,
    latent_channels: int,
    *,
    most: int = MOST_CHECKED,
) -> Iterator[str]:
    """Yield a fault for each file of a shape that isn't its bucket's.

    Of more than `most` images so many are looked at, spread over each bucket, and beside them all
    whose shape is known without opening a file. A wrong one among the rest stops its batch.
    """
    step = max(1, -(-len(dataset) // most))
    for size, images in zip(dataset.bucket_sizes, dataset.images, strict=True):
        grid = (latent_channels, size[1] // vae_scale_factor, size[0] // vae_scale_factor)
        for place, number in enumerate(images):
            name = dataset.names[number]
            for file, found, maker in _misfits(dataset, name, size, grid, opens=place % step == 0):
                yield f"{file}: {found} is not bucket {size}; run {maker} again after bucketing"
    yield from dataset.side_inputs.find_odd_shapes(dataset.names[::step])


def _misfits(
    dataset: PreparedDataset, name: str, size: Size, grid: Grid, *, opens: bool
) -> Iterator[tuple[str, str, str]]:
    if opens or dataset.knows_shape(name):
        misfit = dataset.image_misfit(name, size, grid)
        if misfit is not None:
            yield misfit
    if opens:
        yield from dataset.side_inputs.find_misfits(name, size, grid)
