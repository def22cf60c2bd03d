"""Make masks, which weight each position of an image in the loss: of faces, transparency, drawings.

Writes mask/<name>.npz, an array 'arr_0' of float32, 0 to 1, (height / 8, width / 8). A second run
makes only masks that are new, or whose image or settings changed; masks of other programs stay.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from modules.cache_notes import INDEX
from modules.journal import Journal
from modules.shard import Shard
from preprocess.dataset_images import Task, check_multiples, find_images
from preprocess.faces import find_cascade
from preprocess.job import Counts, make_parser, run_command, run_in_processes, track
from preprocess.mask_files import MaskMaker, read_note
from preprocess.mask_sources import Faces, MaskImages, MaskSource, MaskTask, Transparency
from preprocess.sources import stamp

logger = logging.getLogger(__name__)

Origin = Literal["faces", "alpha", "images"]
NoFace = Literal["full", "background"]

_WORTH_PROCESSES = 64  # images; fewer are done before processes have started
_FILES = {"faces": "cascade", "alpha": "originals", "images": "masks"}  # an origin's own argument
_MISSING = {"faces": "a face", "alpha": "transparency", "images": "a mask image"}


@dataclass(frozen=True, kw_only=True)
class Masked(Counts):
    """What `create_mask` did, in images."""

    without: int
    """Without a face, without transparency, or without a mask image."""


def create_mask(
    *,
    directory: str | Path,
    output: str | Path | None = None,
    origin: Origin = "faces",
    masks: str | Path | None = None,
    originals: str | Path | None = None,
    background: float | None = None,
    cascade: str | Path | None = None,
    margin: float = 0.0,
    min_neighbors: int = 5,
    min_size: int = 24,
    no_face: NoFace = "full",
    scale_factor: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    shard: str | None = None,
) -> Masked:
    """Write a mask for each image of the dataset `directory`.

    `faces` finds faces with `cascade`, a file or the name of one of OpenCV's, and adds `margin`, in
    parts of a face's side; an image without a face counts fully, or as background. `alpha` takes
    the transparency of the images in `originals`, the folder that bucketing read. `images` takes
    `masks`/<name>.png, of the image's shape before or after bucketing: white counts, grey in part;
    an image without one gets no mask and counts fully. No position weighs less than `background`,
    by default 0.05 beside faces and 0 else. `scale_factor` is the VAE's, by default that of the
    latents, or 8. Masks of other programs are replaced only with `overwrite`. With `shard`
    "2/4" the second of four parts is done.

    Raises:
        ValueError: an argument is wrong, or there is no dataset.
    """
    part, folder = Shard.parse(shard), Path(directory)
    if background is None:
        background = 0.05 if origin == "faces" else 0.0
    _check_choice("origin", origin, get_args(Origin))
    _check_choice("no_face", no_face, get_args(NoFace))
    _check_range("background", background, 0, 1)
    _check_range("margin", margin, 0)
    _check_range("min_neighbors", min_neighbors, 1)
    _check_range("min_size", min_size, 1)
    _check_range("scale_factor", 8 if scale_factor is None else scale_factor, 1)
    _check_files(origin, {"cascade": cascade, "originals": originals, "masks": masks})
    source: MaskSource
    if origin == "faces":
        found = find_cascade(cascade)
        source = Faces(cascade=found, margin=margin, min_neighbors=min_neighbors, min_size=min_size)
    elif origin == "alpha":
        source = Transparency(originals=Path(originals or ""), dataset=folder)
    else:
        source = MaskImages(masks=Path(masks or ""), dataset=folder)
    images, failed = find_images(folder, part)
    scale_factor = scale_factor or _scale_of_latents(folder, images)
    check_multiples(images, scale_factor)
    tasks, faults = source.find(images)
    maker = MaskMaker(
        source=source,
        directory=Path(output) if output is not None else folder / "mask",
        background=background,
        empty=background if no_face == "background" and origin == "faces" else 1.0,
        scale_factor=scale_factor,
    )
    journal = Journal(maker.directory / INDEX, part)
    pending, kept = _sort_out(maker, tasks, journal, overwrite=overwrite)
    workers = 1 if len(pending) < _WORTH_PROCESSES else num_workers
    outcomes = run_in_processes(maker, pending, num_workers=workers)
    made = []
    for outcome in track(outcomes, total=len(pending), description="masks"):
        made.append(outcome)
        if outcome.entry:
            journal.append([outcome.entry])
    journal.rewrite()
    failed += faults + [outcome.error for outcome in made if outcome.error]
    without = len(images) - len(tasks) - len(faults)
    return Masked(
        done=sum(not outcome.error for outcome in made),
        skipped=len(kept),
        failed=failed,
        without=without + sum(kept) + sum(outcome.is_empty for outcome in made),
    )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")


def _check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        limits = f"within {least:g} and {most:g}" if most < math.inf else f"{least:g} or more"
        raise ValueError(f"{name}: {value:g} is not {limits}")


def _check_files(origin: Origin, files: Mapping[str, str | Path | None]) -> None:
    own = _FILES[origin]
    for name, file in files.items():
        if name != own and file is not None:
            raise ValueError(f"{name}: has no effect on masks from {origin}")
    if own == "cascade":
        return
    what = "the folder that bucketing read" if own == "originals" else "the folder of mask images"
    folder = files[own]
    if folder is None or not Path(folder).is_dir():
        given = "is missing" if folder is None else f"{folder} is no directory"
        raise ValueError(f"{own}: {given}; name {what}")


def _scale_of_latents(directory: Path, images: Sequence[Task]) -> int:
    """Return the pixels of a latent position, as the first latents have them; 8 without any."""
    for image in images:
        file = directory / "latents" / f"{image.name}.npy"
        if file.is_file():
            try:
                return image.size[0] // np.load(file, mmap_mode="r").shape[-1]
            except (ValueError, OSError, EOFError, IndexError, ZeroDivisionError):
                continue  # a damaged file; training names it
    return 8


def _sort_out(
    maker: MaskMaker, tasks: Sequence[MaskTask], journal: Journal, *, overwrite: bool
) -> tuple[list[MaskTask], list[bool]]:
    """Return tasks that are to be done; of the others, whether there was nothing to mask."""
    pending, kept, foreign = [], [], 0
    for task in tasks:
        note = read_note(maker.path(task.name))
        if note == {} and not overwrite:
            journal.entries.pop(task.name, None)
            foreign += 1
            kept.append(False)
        elif note and maker.is_of(task, note, journal.entries.get(task.name, {})):
            kept.append(note["is_empty"])
            journal.entries[task.name] |= stamp(task.image)
        else:
            journal.entries.pop(task.name, None)
            pending.append(task)
    if foreign:
        logger.info(
            "%s: %d masks were made by another program and stay; --overwrite replaces them",
            maker.directory,
            foreign,
        )
    return pending, kept


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        output="default: mask/ of the dataset",
        num_workers="processes that make masks; default: one per processor",
        shard=True,
    )
    parser.add_argument(
        "--from",
        dest="origin",
        choices=get_args(Origin),
        default="faces",
        help="faces that are found, the images' transparency, or mask images",
    )
    parser.add_argument(
        "--background", type=float, help="least weight; default: 0.05 with faces, else 0"
    )
    parser.add_argument(
        "--cascade", help="file of a cascade, or one of OpenCV's; default: frontal faces"
    )
    parser.add_argument(
        "--margin", type=float, default=0.0, help="added around a face, in parts of its side"
    )
    parser.add_argument(
        "--min_neighbors", type=int, default=5, help="more finds fewer faces, with fewer mistakes"
    )
    parser.add_argument("--min_size", type=int, default=24, help="side of the smallest face")
    parser.add_argument(
        "--no_face",
        choices=get_args(NoFace),
        default="full",
        help="how an image without a face counts",
    )
    parser.add_argument("--originals", help="with --from alpha: the folder that bucketing read")
    parser.add_argument("--masks", help="with --from images: folder of <name>.png, white counts")
    parser.add_argument(
        "--scale_factor", type=int, help="of the VAE; default: that of the latents, or 8"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace masks of other programs too"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(create_mask(**vars(arguments)), arguments))


def _summarise(result: Masked, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    counts = f"{result.done} made, {result.skipped} kept, {len(result.failed)} failed"
    if result.without:
        counts += f"; {result.without} without {_MISSING[arguments.origin]}, counted "
        counts += "as background" if arguments.no_face == "background" else "fully"
    return f"{arguments.directory}: masks: {counts}", result.failed


if __name__ == "__main__":
    sys.exit(main())
