"""Write the features that a WD14 tagger sees in a dataset's images, for training a PFG.

Writes pfg/<name>.npz, an array `controll`, float32 (features,), and pfg/tagger.json, which names
the tagger. A second run does only images that are new or changed; pfg/index.jsonl knows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.shard import Shard
from preprocess.feature_folder import FeatureFolder
from preprocess.job import make_parser, run_command, track
from preprocess.sources import Task, stamp
from preprocess.wd14_features import load_features
from preprocess.wd14_files import find_tagger
from preprocess.wd14_images import find_images, run_tagger

DEFAULT_TAGGER = "SmilingWolf/wd-v1-4-vit-tagger-v2"
"""The tagger whose features the PFGs that people share were trained on."""


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What `tagger_control` did, in images."""

    done: int
    skipped: int
    """Done by an earlier run with the same tagger, and unchanged since."""
    failed: list[str]
    """A line for each that has no features."""


def tagger_control(
    *,
    directory: str | Path,
    output: str | Path | None = None,
    model: str = DEFAULT_TAGGER,
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    shard: str | None = None,
) -> Extracted:
    """Write the features of the images of `directory` into `output`, by default its folder pfg.

    Images are those that buckets.json lists, or all of a folder without one. `model` is a tagger
    in ONNX form: a directory, an .onnx file or a hub id; its features are what its last layer
    turns into probabilities, or an output of their own. Features of different taggers don't mix:
    those of another are replaced only with `overwrite`. `num_workers` threads decode; `device` is
    cpu or cuda. With `shard` "2/4" the second of four parts is done.

    Raises:
        ValueError: an argument is wrong, or there are no images or no tagger, or `output` holds
            features of another tagger.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    part, source = Shard.parse(shard), Path(directory)
    images = find_images(source, part)
    files = find_tagger(model)
    folder = FeatureFolder(Path(output) if output is not None else source / "pfg", files, part)
    is_foreign = folder.is_foreign(images.tasks)
    if is_foreign and part.is_part:
        raise ValueError(
            f"{folder.directory}: holds features of {folder.describe_tagger()}, not of {files.id}, "
            "and parts can't replace them; name another --output, or remove the directory first"
        )
    if is_foreign and not overwrite:
        raise ValueError(
            f"{folder.directory}: holds features of {folder.describe_tagger()}, not of {files.id}, "
            "and they don't mix; name another --output, or add --overwrite to replace them"
        )
    tasks = [replace(task, earlier=folder.find(task)) for task in images.tasks]
    pending = [task for task in tasks if not _is_finished(task)]
    done = 0
    failed: list[str] = []
    if pending:
        tagger = load_features(files, device=device)
        if is_foreign:
            folder.clear(images.tasks)
        outcomes = run_tagger(tagger, pending, batch_size=batch_size, num_workers=num_workers)
        for outcome in track(outcomes, total=len(pending), description="features"):
            done += outcome.values is not None
            if outcome.error:
                failed.append(outcome.error)
            folder.write(outcome)
    folder.close()
    skipped = len(tasks) - done - len(failed)
    return Extracted(done=done, skipped=skipped, failed=images.missing + failed)


def _is_finished(task: Task) -> bool:
    return task.earlier is not None and stamp(task.path).items() <= task.earlier.items()


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        output="default: pfg/ of the dataset",
        num_workers="threads that decode; default: one per processor, at most 8",
        batch_size=8,
        shard=True,
    )
    parser.add_argument(
        *("-m", "--model"),
        default=DEFAULT_TAGGER,
        help="tagger in ONNX form: directory, file or hub id",
    )
    parser.add_argument("--device", help="cpu or cuda; default: cuda if onnxruntime has it")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace features of another tagger"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(tagger_control(**vars(arguments)), arguments.directory))


def _summarise(result: Extracted, directory: str) -> tuple[str, list[str]]:
    counts = f"{result.done} done, {result.skipped} kept, {len(result.failed)} failed"
    return f"{directory}: features: {counts}", result.failed


if __name__ == "__main__":
    sys.exit(main())
