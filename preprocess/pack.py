"""Pack a dataset's latents and captions into a few large files, which training reads as well.

Writes latents_packed/<width>x<height>-<number>.safetensors and captions.jsonl. --remove deletes the
single files after comparing the packed ones with them; without it they stay, and are what is read.
With --output the packed files become a dataset of their own. A second run packs what is new or
changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from modules.buckets import BucketIndex, Size
from modules.dataset_folder import flipped_folder
from modules.files import write_atomically
from modules.packed_latents import DTYPES, PackedLatents, packed_folder
from modules.store import LocalStore
from preprocess.caption_lines import pack_captions, remove_captions
from preprocess.job import make_parser, run_command, track
from preprocess.latent_shards import next_number, write_shard

FOLDERS = ("latents", flipped_folder(Path("latents")).name)
"""What is packed, each into a folder of its own."""

_MOST_ROWS = 65_536  # of a file: its header, which is read when a run starts, stays small
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What `pack` did, in latents: an image has two if mirrored ones were made."""

    done: int
    skipped: int
    """Packed by an earlier run and unchanged since."""
    captions: int
    removed: int
    """Single files that were deleted, of latents and captions."""
    failed: list[str]
    """A line for each that is missing, or can't be packed."""


def pack(
    *,
    directory: str | Path,
    output: str | Path | None = None,
    shard_size: int = 1024,
    remove: bool = False,
) -> Packed:
    """Pack the latents and captions of the images that buckets.json of `directory` lists.

    `output` is a directory for them, with copies of buckets.json and images.jsonl. Files hold
    `shard_size` MiB of latents at most.

    Raises:
        ValueError: an argument is wrong, there is no dataset, or a file can't be read.
    """
    source = Path(directory)
    target = Path(output) if output is not None else source
    is_copy = target.resolve() != source.resolve()
    if shard_size < 1:
        raise ValueError(f"shard_size: {shard_size} is less than 1 MiB")
    if remove and is_copy:
        raise ValueError("remove: is for files that are packed in their place; leave output out")
    buckets = BucketIndex.load(source / "buckets.json").buckets
    names = [name for some in buckets.values() for name in some]
    target.mkdir(parents=True, exist_ok=True)
    folders = [folder for folder in FOLDERS if _has_latents(source, folder)] or FOLDERS[:1]
    failed: list[str] = []
    done = 0
    for folder in folders:
        latents = _Latents(source, folder, names)
        packed = PackedLatents(LocalStore(target), folder, names)
        shards = [*_plan(buckets, latents, packed, is_copy, failed, shard_size * _MIB)]
        total = sum(len(shard.names) for shard in shards)
        done += total
        for _ in track(_write_shards(shards, latents, target), total=total, description=folder):
            pass
    captions = pack_captions(source, target, names)
    if is_copy:
        notes = [f"{folder}/index.jsonl" for folder in folders]
        for file in (*notes, "images.jsonl", "buckets.json"):
            if (source / file).is_file():
                write_atomically(target / file, (source / file).read_bytes())
    removed = 0
    if remove:
        removed = remove_captions(source, names)
        removed += sum(_remove_latents(source, folder, names) for folder in folders)
    skipped = len(folders) * len(names) - done - len(failed)
    return Packed(done=done, skipped=skipped, captions=captions, removed=removed, failed=failed)


def _has_latents(directory: Path, folder: str) -> bool:
    return any((directory / each).is_dir() for each in (folder, packed_folder(folder)))


class _Latents:
    """The latents of a dataset as they are stored: single files, else packed ones."""

    def __init__(self, directory: Path, folder: str, names: Sequence[str]) -> None:
        store = LocalStore(directory)
        self.directory = directory
        self.folder = folder
        self.single = store.files_by_name(folder, (".npy",))
        self.packed = PackedLatents(store, folder, names)

    def path(self, name: str) -> Path:
        return self.directory / self.folder / f"{name}.npy"

    def read(self, name: str) -> np.ndarray:
        if name not in self.single:
            return self.packed.read(name)
        try:
            # Mapped: planning wants the header only.
            return np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.path(name)}: can't be read ({error})") from error

    def is_in(self, packed: PackedLatents, name: str) -> bool:
        """Say whether `packed` has the same latents of an image, bit for bit."""
        if name not in packed:
            return False
        mine, other = self.read(name), packed.read(name)
        same = (mine.shape, mine.dtype) == (other.shape, other.dtype)
        return same and mine.tobytes() == other.tobytes()


@dataclass(frozen=True)
class _Shard:
    size: Size
    shape: tuple[int, ...]  # of a row
    dtype: str  # safetensors' name
    names: Sequence[str]


def _plan(
    buckets: dict[Size, Sequence[str]],
    latents: _Latents,
    packed: PackedLatents,
    is_copy: bool,
    failed: list[str],
    most_bytes: int,
) -> Iterator[_Shard]:
    """Yield the files to write: images of a bucket whose latents are alike; list what fails."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    for size, names in buckets.items():
        alike: dict[tuple[tuple[int, ...], str], list[str]] = {}
        for name in names:
            if name not in latents.single and name not in latents.packed:
                failed.append(f"{latents.path(name)}: no such file; run preprocess/latent.py")
                continue
            if (not is_copy and name not in latents.single) or latents.is_in(packed, name):
                continue
            try:
                array = latents.read(name)
            except ValueError as error:
                failed.append(str(error))
                continue
            if array.dtype not in words:
                failed.append(f"{latents.path(name)}: {array.dtype} can't be packed")
                continue
            alike.setdefault((array.shape, words[array.dtype]), []).append(name)
        for (shape, dtype), some in alike.items():
            row = max(1, prod(shape) * DTYPES[dtype].itemsize)
            rows = max(1, min(_MOST_ROWS, most_bytes // row))
            for start in range(0, len(some), rows):
                yield _Shard(size, shape, dtype, some[start : start + rows])


def _write_shards(shards: Sequence[_Shard], latents: _Latents, target: Path) -> Iterator[str]:
    """Write each file whole or not at all; yield the names in it."""
    folder = target / packed_folder(latents.folder)
    for number, shard in enumerate(shards, start=next_number(target, latents.folder)):
        file = f"{shard.size[0]}x{shard.size[1]}-{number:05d}.safetensors"
        rows = (latents.read(name) for name in shard.names)
        write_shard(folder / file, shard.names, rows, shape=shard.shape, dtype=shard.dtype)
        yield from shard.names


def _remove_latents(source: Path, folder: str, names: Sequence[str]) -> int:
    """Delete single files whose latents, read again, are packed; return how many."""
    latents = _Latents(source, folder, names)
    removed = 0
    for name in names:
        if name in latents.single and latents.is_in(latents.packed, name):
            latents.path(name).unlink()
            removed += 1
    return removed


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__, output="a dataset of the packed files alone; default: beside the single files"
    )
    parser.add_argument("--shard_size", type=int, default=1024, help="MiB of latents in a file")
    parser.add_argument("--remove", action="store_true", help="delete files that are packed")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(pack(**vars(arguments)), arguments))


def _summarise(result: Packed, arguments) -> tuple[str, list[str]]:
    summary = (
        f"{arguments.output or arguments.directory}: {result.done} latents packed, "
        f"{result.skipped} kept, {len(result.failed)} failed; {result.captions} captions; "
        f"{result.removed} single files removed"
    )
    return summary, result.failed


if __name__ == "__main__":
    sys.exit(main())
