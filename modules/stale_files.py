"""Files made of images that were edited since: known by content, without reading every image."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from modules.cache_notes import CacheNotes
from modules.dataset_files import list_names, raise_faults
from modules.dataset_folder import find_dataset_images
from modules.file_hashes import FileHashes
from modules.store import is_remote

if TYPE_CHECKING:
    from modules.prepared_dataset import PreparedDataset

logger = logging.getLogger(__name__)

MOST_READ = 20_000
"""Images that are read when a run starts, if their times of change differ from what is noted."""

_SAID = 1000  # images that are read without a word
_MAKERS = {
    "latents": "latent.py",
    "latents_flipped": "latent.py --flip",
    "mask": "create_mask.py",
    "pfg": "tagger_control.py",
}


def check_freshness(dataset: PreparedDataset, *, most: int = MOST_READ) -> None:
    """Check that no file was made of an image, or an image of its source, that was edited since.

    Raises:
        ValueError: some are, which the dataset's `allow_stale` makes a warning; lists them.
    """
    if is_remote(str(dataset.store)):  # its images are not here
        return
    place, total, faults = dataset.path, len(dataset), []
    if edited := find_edited_sources(dataset, most=most):
        faults.append(
            f"images: {len(edited)} of {total} are of sources that were edited since: "
            f"{list_names(edited)}; run preprocess/bucketing.py again, then the scripts behind it"
        )
    for folder, stale in find_stale(dataset, dataset.notes, most=most).items():
        maker = f"preprocess/{_MAKERS[folder]} -d {place}" if folder in _MAKERS else "its script"
        faults.append(
            f"{folder}: {len(stale)} of {total} are of images that were edited since: "
            f"{list_names(stale)}; run {maker} again"
        )
    if faults and dataset.allow_stale:
        logger.warning("%s: allow_stale: trained on though", "\n  ".join([str(place), *faults]))
    elif faults:
        raise_faults(place, [*faults, "or set allow_stale: true to train on them as they are"])


def find_stale(
    dataset: PreparedDataset, notes: Sequence[CacheNotes], *, most: int = MOST_READ
) -> dict[str, list[str]]:
    """Name, by folder, the images whose files there were made of another content than is there now.

    An image whose size and time of change are as noted is not read; one of another size is another.
    The rest is read and compared, `most` of them, spread over all: a copy of the dataset may have
    new times throughout. Hashes are remembered, so that a second look reads nothing. What was made
    from the source file itself goes by the hash of that in images.jsonl.
    """
    noted = [each for each in notes if each.known.any()]
    if not noted:
        return {}
    images = _Images(dataset)
    images.look(np.flatnonzero(np.logical_or.reduce([each.known for each in noted])))
    unsure = np.zeros(len(dataset), dtype=bool)
    for each in noted:
        unsure |= images.as_large(each) & (each.times != images.times)
    found = images.read(np.flatnonzero(unsure), most)
    stale: dict[str, list[str]] = {}
    for each in noted:
        other = each.known & (images.sizes >= 0) & (each.sizes != images.sizes)
        for number in np.flatnonzero(images.as_large(each) & (each.times != images.times)).tolist():
            if number in found:
                other[number] = found[number] != each.digests[number].tobytes()
        if other.any():
            other &= (each.digests != dataset.records.digests).any(axis=1)
        if other.any():
            stale[each.folder] = [dataset.names[n] for n in np.flatnonzero(other).tolist()]
    return stale


def find_edited_sources(dataset: PreparedDataset, *, most: int = MOST_READ) -> list[str]:
    """Name the images whose source file has been edited since bucketing read it.

    `most` of them are looked at, spread over all. Nothing is known where the sources' folder is
    not there, or is not noted.
    """
    records = dataset.records
    if (folder := records.source_folder(dataset.path)) is None:
        return []
    edited = []
    with closing(FileHashes()) as hashes:
        for number in range(0, len(dataset), max(1, -(-len(dataset) // most))):
            if (source := records.source(number)) is None:
                continue
            path = os.path.join(folder, source)
            try:
                status = os.stat(path)
                if status.st_mtime_ns == records.times[number] and (
                    status.st_size == records.sizes[number]
                ):
                    continue
                same = status.st_size == records.sizes[number] and (
                    bytes.fromhex(hashes.sha256(path)) == records.digests[number].tobytes()
                )
            except OSError:  # gone or locked away; what was made of it is still as it was
                continue
            if not same:
                edited.append(dataset.names[number])
    return edited


class _Images:
    """The dataset's images as they are now, if they are there: packed latents need none."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._directory = dataset.path
        self._names = dataset.names
        self._elsewhere: dict[int, str] = {}
        self.sizes = np.full(len(dataset), -1, dtype=np.int64)  # bytes
        self.times = np.zeros(len(dataset), dtype=np.int64)  # of change, in ns

    def look(self, numbers: np.ndarray) -> None:
        """Note size and time of change of images."""
        missed = [number for number in numbers.tolist() if not self._stat(number)]
        if missed:  # not bucketing's own
            files = find_dataset_images(self._directory, self._names)
            for number in missed:
                if self._names[number] in files:
                    self._elsewhere[number] = str(files[self._names[number]])
                    self._stat(number)

    def as_large(self, notes: CacheNotes) -> np.ndarray:
        """For each image whether it has as many bytes as the one that is noted."""
        return notes.known & (self.sizes >= 0) & (notes.sizes == self.sizes)

    def read(self, numbers: np.ndarray, most: int) -> dict[int, bytes]:
        """Hash images, `most` of them."""
        chosen = numbers[:: max(1, -(-len(numbers) // most))].tolist()
        if len(numbers) > _SAID:
            logger.info(
                "%s: %d images have other dates than when they were encoded; %d of them are "
                "compared by content",
                *(self._directory, len(numbers), len(chosen)),
            )
        with closing(FileHashes()) as hashes:
            return dict(self._hash(chosen, hashes))

    def _hash(self, numbers: Sequence[int], hashes: FileHashes) -> Iterator[tuple[int, bytes]]:
        for number in numbers:
            try:
                yield number, bytes.fromhex(hashes.sha256(self._path(number)))
            except OSError:
                continue

    def _stat(self, number: int) -> bool:
        try:
            status = os.stat(self._path(number))
        except OSError:
            return False
        self.sizes[number], self.times[number] = status.st_size, status.st_mtime_ns
        return True

    def _path(self, number: int) -> str:
        own = self._elsewhere.get(number)
        return own or os.path.join(self._directory, "images", f"{self._names[number]}.png")
