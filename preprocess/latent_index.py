"""The index of encoded latents: which image's content went through which VAE."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modules.files import write_atomically
from modules.journal import Journal
from modules.packed_latents import read_shards
from modules.shard import Shard
from modules.store import LocalStore
from preprocess.dataset_images import Task
from preprocess.latent_shards import mark_outdated
from preprocess.sources import stamp

logger = logging.getLogger(__name__)

_MADE_AS = ("vae", "dtype", "flipped", "posterior")
_UNNOTED = "sample"  # of the posterior: what there was before there was a choice


class LatentIndex:
    """The latents' directory and its index: which image's content went through which VAE."""

    def __init__(
        self,
        directory: Path,
        *,
        vae: str,
        dtype: str,
        posterior: str,
        shard: Shard,
        is_flipped: bool = False,
    ) -> None:
        self.directory = directory
        self.is_flipped = is_flipped
        """Latents of mirrored images."""
        self.key: dict[str, Any] = {"vae": vae, "dtype": dtype}
        if is_flipped:
            self.key["flipped"] = True
        if posterior != _UNNOTED:
            self.key["posterior"] = posterior
        self.journal = Journal(directory / "index.jsonl", shard)
        self.journal.rewrite()
        self._packed = self._find_packed()

    def path(self, name: str) -> Path:
        """Return the file of an image's latents."""
        return self.directory / f"{name}.npy"

    def find(self, task: Task) -> dict[str, Any] | None:
        """Return the entry of an image's latents if they are there and of this VAE."""
        entry = self.journal.entries.get(task.name)
        if entry is None or not self._is_own(entry):
            return None
        is_there = task.name in self._packed or self.path(task.name).is_file()
        return entry if is_there else None

    def _is_own(self, entry: Mapping[str, Any]) -> bool:
        """Say whether an entry's latents are made as new ones would be."""
        return all(entry.get(key) == self.key.get(key) for key in _MADE_AS)

    def has(self, task: Task) -> bool:
        """Say whether an image's latents are up to date, without reading the image."""
        entry = self.find(task)
        return entry is not None and stamp(task.path).items() <= entry.items()

    def remove_outdated(self, tasks: Sequence[Task]) -> None:
        """Remove latents of another VAE, so that no stop can leave a mixture of two."""
        known = self.journal.entries
        files = [task for task in tasks if self.path(task.name).is_file()]
        outdated = [task for task in files if task.name in known and self.find(task) is None]
        for task in outdated:
            self.path(task.name).unlink()
        if outdated:
            logger.info(
                "%s: %d latents are of another VAE, precision or --posterior; "
                "encoding these images again",
                self.directory,
                len(outdated),
            )
        unknown = sum(task.name not in known for task in files)
        if unknown:
            logger.info(
                "%s: it's not known which VAE made %d latents; encoding these images again",
                self.directory,
                unknown,
            )

    def write(self, entries: Sequence[Mapping[str, Any]], latents: np.ndarray) -> None:
        """Write latents (B, C, h, w), one file each.

        Raises:
            OSError: one can't be written; names it. Nothing of it is there then.
        """
        for entry, array in zip(entries, latents, strict=True):
            path = self.path(entry["name"])
            try:
                write_atomically(path, partial(np.save, arr=array))
            except OSError as error:
                raise OSError(f"{path}: can't be written ({error})") from error
        self.journal.append(entries)  # last: an entry stands for a finished file

    def forget(self, name: str) -> None:
        """Remove the latents of an image that couldn't be encoded again; they are out of date."""
        if self.journal.entries.pop(name, None) is not None:
            self.path(name).unlink(missing_ok=True)
        if name in self._packed:
            mark_outdated(self.directory.parent, self.directory.name, name)

    def _find_packed(self) -> set[str]:
        """Return the names in packed latents; files of another VAE's are removed.

        A whole file is of one VAE: packed rows are replaced by single files only.
        """
        store = LocalStore(self.directory.parent)
        found: set[str] = set()
        for shard, rows in read_shards(store, self.directory.name):
            names = [name for name in rows if name is not None]
            entries = (self.journal.entries.get(name, self.key) for name in names)
            if all(self._is_own(entry) for entry in entries):
                found.update(names)
            else:
                (store.directory / shard.file).unlink()
                logger.info(
                    "%s: is of another VAE, precision or --posterior; encoding its %d images again",
                    store.directory / shard.file,
                    len(names),
                )
        return found
