"""Sort images into aspect-ratio buckets: resize, crop and list them as a dataset.

Writes images/<name>.png, captions/, buckets.json and images.jsonl into the output directory. A
second run does only what is new, changed, or was left by a run that was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.buckets import LIMITS, Size, assign, make_buckets
from modules.dataset_folder import flipped_folder
from modules.files import write_atomically
from modules.image_records import SOURCES, describe_sources
from modules.images import open_image, read_size, resize_and_crop
from modules.journal import Journal
from modules.shard import Shard
from preprocess.bucketed_files import image_file, open_journal, write_index
from preprocess.job import make_parser, run_command, run_in_processes, track
from preprocess.latent_shards import mark_outdated
from preprocess.metadata import carry_captions
from preprocess.sources import Task, find_images, name_images, stamp

logger = logging.getLogger(__name__)

_KEYS = {"source", "sha256", "bytes", "mtime_ns", "resized_size", "crop_top_left"}
_WORTH_PROCESSES = 16 * 2**20  # bytes of images; less is read before processes have started


@dataclass(frozen=True, kw_only=True)
class Bucketed:
    """What `bucketing` did, in images."""

    done: int
    skipped: int
    """Finished by an earlier run and unchanged since."""
    failed: list[str]
    """A line for each that couldn't be read."""
    enlarged: int
    """Smaller than their bucket, so not sharp."""
    images_per_bucket: dict[Size, int]


def bucketing(
    *,
    directory: str | Path,
    output: str | Path,
    family: str = "sd2",
    resolution: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    max_ratio: float | None = None,
    step: int = 64,
    metadata: str | Path | None = None,
    num_workers: int | None = None,
    shard: str | None = None,
) -> Bucketed:
    """Resize and crop every image of `directory`, sub-folders too, to the bucket nearest to it.

    Buckets are those that suit `family` (`modules.buckets.LIMITS`), but for limits that are given.

    A caption (.caption, .txt) beside an image, or in a folder `captions`, is copied unless the
    dataset's is newer; an image without takes that of metadata.jsonl (`preprocess.metadata`), or of
    the file that `metadata` names. Of cat.jpg and cat.png the first is named cat, the second
    cat_png. Images are decoded in `num_workers` processes, one for each processor by default; a few
    small ones are decoded in this process.

    With `shard` "2/4" the second of four parts is done, and buckets.json not written: a run without
    it does so when all parts are done, and whatever they left.

    Raises:
        ValueError: an argument is wrong, or there are no images.
    """
    part, source, target = Shard.parse(shard), Path(directory), Path(output)
    if family not in LIMITS:
        raise ValueError(f"family: {family!r} is not one of {', '.join(LIMITS)}")
    given = {
        "resolution": resolution,
        "min_length": min_length,
        "max_length": max_length,
        "max_ratio": max_ratio,
    }
    limits = asdict(LIMITS[family]) | {k: v for k, v in given.items() if v is not None}
    buckets = make_buckets(**limits, step=step)
    images = name_images(find_images(source, target))
    tasks = [task for task in images if part.owns(task.name)]
    journal = open_journal(target, part)
    finished, pending = _sort_out(tasks, journal, target=target, buckets=buckets)
    skipped, failed = len(finished), []
    if sum(task.path.stat().st_size for task in pending) < _WORTH_PROCESSES:
        num_workers = 1
    process = partial(_process, target=target, buckets=buckets)
    outcomes = run_in_processes(process, pending, num_workers=num_workers)
    for outcome in track(outcomes, total=len(pending), description="bucketing"):
        if outcome.entry is None:
            failed.append(outcome.error)
            continue
        journal.append([outcome.entry])
        finished[outcome.entry["name"]] = outcome.entry
        skipped += not outcome.is_new
    if finished:
        write_atomically(target / SOURCES, describe_sources(target, source))
    given_file = None if metadata is None else Path(metadata)
    carry_captions(images, finished, source=source, target=target, metadata=given_file)
    return Bucketed(
        done=len(finished) - skipped,
        skipped=skipped,
        failed=failed,
        enlarged=sum(e["original_size"][0] < e["resized_size"][0] for e in finished.values()),
        images_per_bucket=write_index(finished, journal, target, part),
    )


@dataclass(frozen=True)
class _Outcome:
    """What became of a task: its entry in images.jsonl, or else an error."""

    entry: dict[str, Any] | None = None
    is_new: bool = False
    error: str = ""


def _sort_out(
    tasks: Sequence[Task], journal: Journal, *, target: Path, buckets: Sequence[Size]
) -> tuple[dict[str, dict[str, Any]], list[Task]]:
    """Return the entries of images that are finished, and the tasks that are to be done."""
    finished: dict[str, dict[str, Any]] = {}
    pending = []
    for task in tasks:
        entry = journal.entries.get(task.name)
        if entry is not None and not _is_finished(entry, target=target, buckets=buckets):
            entry = None
        if entry is not None and stamp(task.path).items() <= entry.items():
            finished[task.name] = {**entry, "source": task.source}
        else:
            pending.append(Task(task.name, task.source, task.path, entry))
    return finished, pending


def _is_finished(entry: dict[str, Any], *, target: Path, buckets: Sequence[Size]) -> bool:
    try:
        width, height = entry["original_size"]
        is_same = tuple(entry["bucket"]) == assign(width, height, buckets)
        is_same = is_same and entry.keys() >= _KEYS
    except (KeyError, TypeError, ValueError):
        return False  # another program's entry
    return is_same and image_file(target, entry["name"]).is_file()


def _process(task: Task, *, target: Path, buckets: Sequence[Size]) -> _Outcome:
    """Do one image; runs in a worker process."""
    try:
        current = stamp(task.path)
        with task.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if task.earlier is not None and task.earlier["sha256"] == sha256:
            return _Outcome({**task.earlier, "source": task.source, **current})
        original_size = read_size(task.path)
        bucket = assign(original_size[0], original_size[1], buckets)
        # Twice the size leaves all detail to the Lanczos filter.
        image = open_image(task.path, at_least=(2 * bucket[0], 2 * bucket[1]))
        image, crop_top_left, resized_size = resize_and_crop(image, bucket)
    except (ValueError, OSError, MemoryError) as error:
        return _Outcome(error=str(error) or f"{task.path}: {type(error).__name__}")
    # Latents of the image's earlier state; removed first, so that no kill can leave them.
    for folder in (target / "latents", flipped_folder(target / "latents")):
        (folder / f"{task.name}.npy").unlink(missing_ok=True)
        mark_outdated(target, folder.name, task.name)
    save = partial(image.save, format="PNG", compress_level=1)
    write_atomically(image_file(target, task.name), save)
    entry = {
        "name": task.name,
        "source": task.source,
        "sha256": sha256,
        **current,
        "original_size": original_size,  # width, height
        "bucket": bucket,  # width, height
        "resized_size": resized_size,
        "crop_top_left": crop_top_left,
    }
    return _Outcome(entry, is_new=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        directory="folder of images, sub-folders too",
        output="dataset to write",
        output_required=True,
        num_workers="processes that decode; default: one per processor",
        shard=True,
    )
    parser.add_argument(
        "--family", choices=tuple(LIMITS), default="sd2", help="whose sizes are the defaults: sd2"
    )
    parser.add_argument("--resolution", type=int, help="side of the square bucket: 768")
    parser.add_argument("--min_length", type=int, help="shortest side of a bucket: 512")
    parser.add_argument("--max_length", type=int, help="longest side of a bucket: 1024")
    parser.add_argument("--max_ratio", type=float, help="greatest aspect ratio: 2")
    parser.add_argument("--step", type=int, default=64, help="sides are multiples of it")
    parser.add_argument(
        "--metadata", help="captions in one .jsonl or .json; metadata.jsonl is found"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(bucketing(**vars(arguments)), arguments))


def _summarise(result: Bucketed, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    sizes = [f"{w}x{h}: {count}" for (w, h), count in result.images_per_bucket.items()]
    enlarged = f", {result.enlarged} smaller than their bucket" if result.enlarged else ""
    summary = (
        f"{arguments.output}: {result.done} images done, {result.skipped} kept, "
        f"{len(result.failed)} failed{enlarged}; {', '.join(sizes) or 'no buckets'}"
    )
    if arguments.shard:
        summary += "\nwhen all parts are done, run once without --shard: that writes buckets.json"
    return summary, result.failed


if __name__ == "__main__":
    sys.exit(main())
