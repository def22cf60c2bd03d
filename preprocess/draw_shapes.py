"""Draw small captioned pictures of coloured shapes, for the tiny base model and the quickstart.

A picture is 64x64, 80x48 or 48x80 pixels: one upright shape near the centre, in one of eight
colours on a background of another. The same arguments draw the same pictures on any machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from preprocess.job import HelpFormatter
from preprocess.scenes import (
    BASE_SHAPES,
    SHAPES,
    SIZES_BY_NAME,
    STYLES,
    choose_size,
    draw_scene,
    sample_scene,
)

logger = logging.getLogger(__name__)

_MANIFEST = ".draw_shapes.json"


def draw_dataset(
    *,
    output: str,
    count: int,
    seed: int = 0,
    style: str | None = None,
    plain_count: int = 0,
    shapes: Sequence[str] = BASE_SHAPES,
    sizes: Sequence[str] = ("64x64", "80x48", "48x80"),
) -> bool:
    """Draw `count` pictures of `style` and `plain_count` without it into the folder `output`.

    Writes `0000.png` beside `0000.txt` (the caption) and so on, the plain ones last; the folder
    appears complete or not at all. Returns False, and does nothing, if the folder already holds
    the pictures of these arguments. Raises ValueError if an argument is out of range or the
    folder holds anything else.
    """
    _check_arguments(count, plain_count, style, shapes, sizes)
    arguments = {"count": count, "plain_count": plain_count, "seed": seed}
    arguments |= {"style": style, "shapes": list(shapes), "sizes": list(sizes)}
    chosen_sizes = [SIZES_BY_NAME[name] for name in sizes]
    folder = Path(output)
    if _holds(folder, arguments):
        return False
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for index in range(count + plain_count):
        # One generator per picture: picture 7 doesn't change when `count` does.
        rng = np.random.default_rng([seed, index])
        size = choose_size(rng, chosen_sizes)
        own_style = style if index < count else None
        scene = sample_scene(rng, shapes=shapes, style=own_style, size=size)
        draw_scene(scene).save(partial / f"{index:04d}.png")
        (partial / f"{index:04d}.txt").write_text(scene.caption + "\n", encoding="utf-8")
    (partial / _MANIFEST).write_text(json.dumps(arguments), encoding="utf-8")
    if folder.is_dir():
        shutil.rmtree(folder)  # empty, or our own with pictures missing: checked above
    os.replace(partial, folder)
    return True


def _check_arguments(
    count: int,
    plain_count: int,
    style: str | None,
    shapes: Sequence[str],
    sizes: Sequence[str],
) -> None:
    faults = []
    if count < 0 or plain_count < 0 or count + plain_count == 0:
        faults.append(f"count: {count} and plain_count: {plain_count} draw no pictures")
    if style is not None and style not in STYLES:
        faults.append(f"style: {style!r} is unknown; use one of {', '.join(STYLES)}")
    for name, given, known in (("shapes", shapes, SHAPES), ("sizes", sizes, SIZES_BY_NAME)):
        if not given or any(each not in known for each in given):
            faults.append(f"{name}: {list(given)} is unknown; use some of {', '.join(known)}")
    if faults:
        raise ValueError("; ".join(faults))


def _holds(folder: Path, arguments: dict) -> bool:
    """Say whether the folder holds these pictures; raise if it holds others."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder}: holds other files; name an empty folder")
    if json.loads(manifest.read_text(encoding="utf-8")) != arguments:
        raise ValueError(f"{folder}: holds pictures of other arguments; delete it or name another")
    names = {file.name for file in folder.iterdir()}
    total = arguments["count"] + arguments["plain_count"]
    return all({f"{i:04d}.png", f"{i:04d}.txt"} <= names for i in range(total))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        *("-o", "--output", "--output_dir", "--output_path"), required=True, help="folder to write"
    )
    parser.add_argument("--count", type=int, default=40, help="pictures of the style")
    parser.add_argument(
        *("--plain_count", "--plain-count"), type=int, default=0, help="pictures without the style"
    )
    parser.add_argument("--seed", type=int, default=0, help="another draws other pictures")
    parser.add_argument("--style", choices=STYLES, help="default: none")
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=list(BASE_SHAPES),
        choices=SHAPES,
        metavar="SHAPE",
        help=f"some of {', '.join(SHAPES)}; default: the first {len(BASE_SHAPES)}",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=list(SIZES_BY_NAME),
        choices=list(SIZES_BY_NAME),
        metavar="SIZE",
        help=f"some of {', '.join(SIZES_BY_NAME)}; default: all",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        drawn = draw_dataset(**vars(arguments))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    total = arguments.count + arguments.plain_count
    logger.info("%s: %d pictures %s", arguments.output, total, "drawn" if drawn else "kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
