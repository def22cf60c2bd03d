"""The contents of a run's datasets, hashed once, beside training: for receipts and for resuming."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any

from modules.dataset_files import list_names
from modules.file_hashes import FileHashes
from modules.files import write_atomically
from modules.manifest import FILE, Listed, Total, read_manifest, write_manifest

if TYPE_CHECKING:
    from modules.run_parts import RunParts

logger = logging.getLogger(__name__)


class DatasetContents:
    """Hashes every file that a run reads of its datasets, from `begin` on.

    Args:
        datasets: by their section: dataset, prior.
        directory: the run's folder, in which the manifest is left.
    """

    def __init__(self, datasets: Mapping[str, Any], directory: Path) -> None:
        self._datasets = datasets
        self._directory = directory
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the run may ask for it
        self._lock = threading.Lock()  # of the place in the file
        self._total: Total | None = None
        self._is_left = False
        self._thread = threading.Thread(target=self._read, name="contents", daemon=True)

    def begin(self) -> None:
        """Start to read files; a second call changes nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def total(self, seconds: float | None = None) -> Total | None:
        """Return what all files are together, as soon as it is known.

        None if it isn't after so many `seconds`, or if no dataset tells its files.
        """
        self.begin()
        self._thread.join(seconds)
        return None if self._thread.is_alive() else self._total

    def manifest(self) -> bytes:
        """Return the list of all files; `total` is known by then."""
        with self._lock:
            self._file.seek(0)
            return self._file.read()

    def leave_manifest(self) -> None:
        """Write the list into the run's folder, once; nothing is lost if it can't be written."""
        if self._is_left or self.total(0) is None:
            return
        try:
            with self._lock:
                self._file.seek(0)
                write_atomically(self._directory / FILE, partial(copyfileobj, self._file))
        except OSError as error:
            logger.warning("%s: can't be written (%s)", self._directory / FILE, error)
        self._is_left = True

    def changes_since(self, manifest: Path) -> str:
        """Say which files differ from those of an earlier manifest; nothing if there is none."""
        try:
            earlier = manifest.read_bytes().splitlines()
            then = {_place(listed): listed.sha256 for listed in read_manifest(earlier)}
        except (OSError, ValueError):
            return ""
        now = {_place(each): each.sha256 for each in read_manifest(self.manifest().splitlines())}
        kinds = {
            "changed": [place for place in now if then.get(place, now[place]) != now[place]],
            "new": [place for place in now if place not in then],
            "gone": [place for place in then if place not in now],
        }
        return "; ".join(
            f"{len(places)} {kind}: {list_names([_name(*place) for place in places])}"
            for kind, places in kinds.items()
            if places
        )

    def _read(self) -> None:
        try:
            with closing(FileHashes()) as hashes:
                self._total = write_manifest(self._datasets, self._file, hashes)
        except Exception as error:  # nothing here is worth a run
            reason = f"{type(error).__name__}: {error}"
            logger.warning("dataset: its files are not known by their contents (%s)", reason)


def _place(listed: Listed) -> tuple[str, str]:
    """What a file is in a dataset, wherever the dataset lies."""
    return listed.section, listed.file


def _name(section: str, file: str) -> str:
    return file if section == "dataset" else f"{section} {file}"


def begin_contents(parts: RunParts, directory: Path) -> DatasetContents:
    """Begin to hash what a run trains on; `directory` is its folder."""
    datasets = {"dataset": parts.dataset}
    if parts.prior is not None:
        datasets["prior"] = parts.prior
    contents = DatasetContents(datasets, directory)
    contents.begin()
    return contents


def describe_total(total: Total | None) -> str | None:
    """How many files, and a hash of their names and contents, as a state holds it."""
    return None if total is None else f"{total.files} files ({total.sha256[:12]})"
