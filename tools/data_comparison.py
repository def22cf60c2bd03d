"""The dataset that a file was made of, held against what there is of it now."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modules import receipt_keys as keys
from modules.config import load
from modules.dataset_files import list_names
from modules.file_hashes import FileHashes
from modules.manifest import FILE, read_manifest, total_of, unpack_manifest, write_manifest
from modules.parts import build_dataset

if TYPE_CHECKING:
    from tools.reproduce import Comparison


def compare_data(
    found: Comparison, metadata: Mapping[str, str], hashes: FileHashes, *, beside: Path
) -> None:
    """Compare the dataset's files, one by one where there is a list of them."""
    if keys.DATASET not in metadata:
        found.unknown.append("dataset: its files were not known; its class doesn't list them")
        return
    if keys.UNREAD in metadata:
        count = metadata[keys.UNREAD]
        found.unknown.append(f"dataset: {count} files were not hashed, only their names are known")
    lines = _find_manifest(metadata, beside)
    if lines is None:
        found.unknown.append("dataset: which of its files differ; there is no list of them")
        now = _manifest_now(found, hashes, _has_sizes(None))
        if now is not None and not any(total_of(n).sha256 == metadata[keys.DATASET] for n in now):
            found.differing.append("dataset: its files are not those of the run")
        return
    missing, changed, known = _check_files(lines, hashes)
    for what, names in (("missing", missing), ("changed", changed)):
        if names:
            found.differing.append(
                f"dataset: {len(names)} of {len(known)} files {what}: {list_names(names)}"
            )
    if missing:
        found.unknown.append("dataset: whether there are new files, before the missing are back")
        return
    now = _manifest_now(found, hashes, _has_sizes(known))
    if now is not None:
        new = [path for path in _paths(now[0]) if path not in known]
        gone = len(known) - (len(list(_paths(now[0]))) - len(new))
        if new:
            found.differing.append(f"dataset: {len(new)} files are new: {list_names(new)}")
        if gone:
            found.differing.append(
                f"dataset: {gone} of {len(known)} files are there but no longer read"
            )


def _check_files(
    lines: Sequence[bytes], hashes: FileHashes
) -> tuple[list[str], list[str], set[str]]:
    """Return the files that are missing and that have changed, and all that were listed."""
    missing, changed, known = [], [], set()
    for listed in read_manifest(lines):
        known.add(listed.path)
        if listed.sha256 is None:
            continue
        try:
            if hashes.sha256(listed.path) != listed.sha256:
                changed.append(listed.path)
        except OSError:
            missing.append(listed.path)
    return missing, changed, known


def _find_manifest(metadata: Mapping[str, str], beside: Path) -> list[bytes] | None:
    """The list of files that belongs to a receipt: in it, or in the run's folder."""
    if keys.MANIFEST in metadata:
        return unpack_manifest(metadata[keys.MANIFEST]).splitlines()
    for folder in (beside, *beside.absolute().parents[:2]):
        if (folder / FILE).is_file():
            lines = (folder / FILE).read_bytes().splitlines()
            if total_of(lines).sha256 == metadata[keys.DATASET]:
                return lines
    return None


def _has_sizes(known: set[str] | None) -> Sequence[bool]:
    """Whether a run read images.jsonl, which depends on its model; both if that is not known."""
    if known is None:
        return (False, True)
    return (any(path.endswith("/images.jsonl") for path in known),)


def _manifest_now(
    found: Comparison, hashes: FileHashes, with_sizes: Sequence[bool]
) -> list[list[bytes]] | None:
    """The manifest of the config's datasets as they are, for each of `with_sizes`."""
    manifests = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.yaml").write_text(found.config, encoding="utf-8")
            config = load(Path(folder) / "config.yaml")
            sections = {"dataset": config.dataset, "prior": config.prior}
            seed = config.train.seed
            built = {n: build_dataset(s, seed=seed) for n, s in sections.items() if s is not None}
            for is_sized in with_sizes:
                if is_sized:
                    for dataset in built.values():
                        getattr(dataset, "read_geometry", bool)()
                with (Path(folder) / f"{is_sized}.jsonl").open("w+b") as file:
                    write_manifest(built, file, hashes)
                    file.seek(0)
                    manifests.append(file.read().splitlines())
    except (ValueError, OSError) as error:
        reason = str(error).strip()
        found.unknown.append(f"dataset: whether there are new files, since now\n    {reason}")
        return None
    return manifests


def _paths(lines: Sequence[bytes]) -> Iterator[str]:
    return (listed.path for listed in read_manifest(lines))
