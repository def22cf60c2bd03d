"""Hashes of images' content: they tell images apart whatever these are called."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from modules.batch import Sample
from modules.dataset_files import LISTED
from modules.files import parse_lines
from modules.guides import whole_sample
from modules.prepared_dataset import PreparedDataset
from modules.randomness import drawn_apart
from modules.store import Store

logger = logging.getLogger(__name__)


def content_hashes(dataset: Any) -> list[str]:
    """Return a hash of each image, by number.

    A dataset may know them, as a method of this name. Of a prepared one images.jsonl says that of
    the source file. Others are read, all of them, and hashed as they go into training; those that
    are never the same twice go by their names, with a warning.
    """
    if hasattr(dataset, "content_hashes"):
        return list(dataset.content_hashes())
    hashes: list[str | None] = [None] * len(dataset)
    if isinstance(dataset, PreparedDataset):
        hashes = read_noted(dataset.store, dataset.names)
    unknown = [number for number, known in enumerate(hashes) if known is None]
    if not unknown:
        return [str(known) for known in hashes]
    by_name = any(_differs(dataset, number) for number in unknown[:LISTED])
    if by_name:
        logger.warning(
            "%s: images differ each time that they are read, so that they are told apart by their "
            "names: one with a new name may change sides between training and validation",
            type(dataset).__name__,
        )
    else:
        logger.info("images.jsonl has no hash of %d images; they are read once", len(unknown))
    for number in unknown:
        sample = _read(dataset, number)
        hashes[number] = _digest(sample.name.encode()) if by_name else hash_image(sample)
    return [str(known) for known in hashes]


def read_noted(store: Store, names: Sequence[str]) -> list[str | None]:
    """Return the hash of each image's source file, where images.jsonl has it."""
    noted: list[str | None] = [None] * len(names)
    if not store.is_file("images.jsonl"):
        return noted
    numbers = {name: number for number, name in enumerate(names)}
    for entry in parse_lines(store.lines("images.jsonl"), f"{store}/images.jsonl"):
        if (number := numbers.get(entry["name"])) is not None:
            noted[number] = entry.get("sha256")
    return noted


def hash_image(sample: Sample) -> str:
    """Return a hash of a sample's latents or pixels."""
    values = sample.pixel_values if sample.latents is None else sample.latents
    assert values is not None, "a sample holds an image"
    values = values.detach().cpu().float().contiguous()
    return _digest(str(tuple(values.shape)).encode() + values.numpy().tobytes())


def _differs(dataset: Any, number: int) -> bool:
    return hash_image(_read(dataset, number)) != hash_image(_read(dataset, number))


def _read(dataset: Any, number: int) -> Sample:
    """Read an image; what a plain dataset draws for it is the same for all, and each time."""
    with drawn_apart("content"):
        return whole_sample(dataset, number)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
