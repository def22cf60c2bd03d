"""Write captions for images with a WD14 tagger: its tags, the most probable first.

Writes captions/<name>.caption of a dataset, or <name>.caption beside the images of a folder. A
second run does only images that are new or changed; a caption that a person has is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.captions import CAPTION_SUFFIXES
from modules.shard import Shard
from preprocess.caption_folder import CaptionFolder
from preprocess.job import make_parser, run_command, track
from preprocess.sources import stamp
from preprocess.tag_choice import TagChoice, TagSettings
from preprocess.wd14 import load_tagger
from preprocess.wd14_files import find_tagger
from preprocess.wd14_images import find_images, run_tagger

DEFAULT_TAGGER = "SmilingWolf/wd-vit-tagger-v3"


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """What `tagger` did, in images."""

    done: int
    skipped: int
    """Tagged by an earlier run with the same tagger and settings, and unchanged since."""
    kept: int
    """With a caption that isn't the tagger's, or has been edited."""
    empty: int
    """Of those done, images without a tag above its threshold."""
    failed: list[str]
    """A line for each that couldn't be tagged."""


def tagger(
    *,
    directory: str | Path,
    output: str | Path | None = None,
    model: str = DEFAULT_TAGGER,
    threshold: float = 0.35,
    character_threshold: float = 0.85,
    rating: bool = False,
    keep_underscores: bool = False,
    exclude: Sequence[str] = (),
    caption_extension: str = CAPTION_SUFFIXES[0],
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    shard: str | None = None,
) -> Tagged:
    """Write a caption for each image of `directory` that has none, with a WD14 tagger.

    Images are those that buckets.json lists, their captions go into the dataset's folder captions;
    without buckets.json it's all images of a folder, and captions go beside them. `model` is a
    tagger in ONNX form: a directory, an .onnx file or a hub id. A general tag is taken from
    probability `threshold` on, a character from `character_threshold` on; `rating` puts the most
    probable rating first. Underscores become spaces, except in emoticons such as ^_^. Captions
    of a person are replaced only with `overwrite`. `num_workers` threads decode; `device` is cpu
    or cuda. With `shard` "2/4" the second of four parts is done.

    Raises:
        ValueError: an argument is wrong, or there are no images or no tagger.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    settings = TagSettings(
        threshold=threshold,
        character_threshold=character_threshold,
        rating=rating,
        keep_underscores=keep_underscores,
        exclude=list(exclude) if not isinstance(exclude, str) else exclude,
    )
    part, source = Shard.parse(shard), Path(directory)
    images = find_images(source, part)
    files = find_tagger(model)
    choice = TagChoice(files.read_tags(), settings)
    own = source / "captions" if images.is_dataset else source
    folder = CaptionFolder(
        Path(output) if output is not None else own,
        extension=caption_extension,
        key={"tagger_sha256": files.sha256, "settings": asdict(settings)},
        dataset=source if output is None or Path(output).resolve() == own.resolve() else None,
        overwrite=overwrite,
        shard=part,
    )
    tasks = [folder.recognise(task) for task in images.tasks if folder.may_write(task)]
    pending = [t for t in tasks if not (t.earlier and stamp(t.path).items() <= t.earlier.items())]
    done, empty = 0, 0
    failed: list[str] = []
    if pending:
        network = load_tagger(files, device=device)
        outcomes = run_tagger(network, pending, batch_size=batch_size, num_workers=num_workers)
        for outcome in track(outcomes, total=len(pending), description="captions"):
            if outcome.error:
                failed.append(outcome.error)
            elif outcome.values is None:
                folder.renew(outcome.entry)
            else:
                chosen = choice.choose(outcome.values)
                folder.write(outcome.entry, ", ".join(chosen))
                done, empty = done + 1, empty + (not chosen)
    folder.close()
    return Tagged(
        done=done,
        skipped=len(tasks) - done - len(failed),
        kept=len(images.tasks) - len(tasks),
        empty=empty,
        failed=images.missing + failed,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        directory="dataset, or folder of images",
        output="default: captions/ of the dataset, or beside the images of a folder",
        num_workers="threads that decode; default: one per processor, at most 8",
        batch_size=8,
        shard=True,
    )
    parser.add_argument(
        *("-m", "--model"),
        default=DEFAULT_TAGGER,
        help="tagger in ONNX form: directory, file or hub id",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.35, help="least probability of a general tag"
    )
    parser.add_argument(
        "--character_threshold", type=float, default=0.85, help="least probability of a character"
    )
    parser.add_argument("--rating", action="store_true", help="put the rating first")
    parser.add_argument(
        "--keep_underscores", action="store_true", help="write long_hair, not long hair"
    )
    parser.add_argument(
        "--exclude", type=_split, default=[], help="tags to leave out, separated by commas"
    )
    parser.add_argument("--caption_extension", default=CAPTION_SUFFIXES[0], help=".caption or .txt")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if onnxruntime has it")
    parser.add_argument("--overwrite", action="store_true", help="replace captions of a person too")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(tagger(**vars(arguments)), arguments.directory))


def _split(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _summarise(result: Tagged, directory: str) -> tuple[str, list[str]]:
    without = f" ({result.empty} without a tag)" if result.empty else ""
    own = f", {result.kept} have one of their own" if result.kept else ""
    counts = f"{result.done} written{without}, {result.skipped} kept{own}"
    return f"{directory}: captions: {counts}, {len(result.failed)} failed", result.failed


if __name__ == "__main__":
    sys.exit(main())
