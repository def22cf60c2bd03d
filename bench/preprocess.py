"""Measure bucketing beside a plain Pillow loop, and encoding latents beside the bare VAE.

    python bench/preprocess.py --write         # into docs/benchmarks.md

Images are JPEG files of a camera's size and kind of content. Seconds are of the
clock: what is asked is how well decoding, computing and writing lie beside each other.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from PIL import Image

from bench.report import conditions, ratio, table, write_section

TITLE = "Preprocessing"
HEADER = ("work", "images a second, ours", "theirs", "ours / theirs")
_SIZES = ((4000, 3000), (3000, 4000), (3500, 3500))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24, help="that are bucketed")
    parser.add_argument("--encoded", type=int, default=8, help="that the VAE encodes")
    parser.add_argument("--side", type=int, default=256, help="of what it encodes, in pixels")
    parser.add_argument("--resolution", type=int, default=512, help="of the buckets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="that torch computes with")
    parser.add_argument("--vae", help="directory of one; default: SD1's, with random weights")
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = [*bucketing_rows(place, options), latents_row(place, options)]
    lines = table(HEADER, rows)
    if options.write:
        notes = notes_of(options)
        write_section(TITLE, [conditions("bench/preprocess.py", given), "", *lines, "", notes])
    print("\n".join(lines))
    return 0


def notes_of(options: argparse.Namespace) -> str:
    """What the table shows."""
    return (
        f"Bucketing {options.images} JPEG files of 12 megapixels into buckets around "
        f"{options.resolution}x{options.resolution}, against one process that opens, converts, "
        "resizes, crops and saves them with Pillow alone: as PNG by its default, and compressed "
        "as lightly as ours. Ours also notes hashes, sizes and crops. Above 1 ours makes more "
        "images a second. Latents are moments of "
        f"{options.encoded} images of {options.side}x{options.side}, decoded from PNG and written "
        "while the VAE encodes, against its encoder alone on tensors that lie in memory; "
        f"{options.threads} thread of torch."
    )


def bucketing_rows(place: Path, options: argparse.Namespace) -> list[list[str]]:
    """Rows of bucketing, by the number of processes."""
    source = draw_photos(place / "photos", options.images)
    sides: dict[str, Callable[[Path], object]] = {
        "by default": partial(pillow_loop, source, options.resolution, level=6),
        "lightly": partial(pillow_loop, source, options.resolution, level=1),
    }
    for count in options.workers:
        sides[f"{count}"] = partial(bucket, source, options.resolution, count)
    seconds = alternate(place, sides, options.rounds)
    rows = []
    for count in options.workers:
        processes = "1 process" if count == 1 else f"{count} processes"
        for peer in ("by default", "lightly"):
            name = f"bucketing, {processes}; Pillow, PNG {peer}"
            rows.append([name, *_rates(options.images, seconds[f"{count}"], seconds[peer])])
    return rows


def latents_row(place: Path, options: argparse.Namespace) -> list[str]:
    """The row of encoding latents."""
    import torch

    from bench.training_models import make_vae
    from modules.images import open_image, to_tensor
    from modules.models.pieces import load_vae
    from preprocess.vae_encoder import VAEEncoder

    torch.set_num_threads(options.threads)
    data = place / "data"
    bucket(draw_photos(place / "few", options.encoded), options.side, 1, data)
    vae = load_vae(options.vae) if options.vae else make_vae()
    encoder = VAEEncoder(vae, device=torch.device("cpu"), dtype="fp32", posterior="moments")
    files = sorted((data / "images").glob("*.png"))
    by_size: dict[tuple[int, int], list[Any]] = {}
    for file in files:
        image = open_image(file)
        by_size.setdefault(image.size, []).append(to_tensor(image))
    batches = [
        torch.stack(images[start : start + 2])
        for images in by_size.values()
        for start in range(0, len(images), 2)
    ]
    sides = {
        "ours": partial(encode_files, data, encoder),
        "theirs": lambda _: [encode_bare(vae, batch) for batch in batches],
    }
    encode_bare(vae, batches[0])  # the first one allocates
    seconds = alternate(place, sides, options.rounds)
    return ["latents; the bare VAE", *_rates(len(files), seconds["ours"], seconds["theirs"])]


def alternate(
    place: Path, sides: Mapping[str, Callable[[Path], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of the clock of each side's rounds, in turns; each writes into a fresh folder."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            output = place / "output"
            began = time.perf_counter()
            sides[name](output)
            seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(output, ignore_errors=True)
    return seconds


def draw_photos(directory: Path, count: int) -> Path:
    """Write JPEG files: smooth shapes of all sizes, and a sensor's noise."""
    directory.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = _SIZES[number % len(_SIZES)]
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 4, (height, width, 1))
        pixels = np.clip(np.asarray(image, dtype=np.float32) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:04d}.jpg", quality=92)
    return directory


def bucket(source: Path, resolution: int, workers: int, output: Path) -> None:
    """Sort images into buckets as preprocess/bucketing.py does."""
    from preprocess.bucketing import bucketing

    limits = {"min_length": resolution // 2, "max_length": 2 * resolution}
    sizes: dict[str, int] = {"resolution": resolution, **limits}
    bucketing(directory=source, output=output, num_workers=workers, **sizes)


def pillow_loop(source: Path, resolution: int, output: Path, *, level: int) -> None:
    """Do what a short script of one's own would: resize, crop, save."""
    output.mkdir()
    for file in sorted(source.iterdir()):
        image = Image.open(file).convert("RGB")
        width, height = bucket_of(image.size, resolution)
        factor = max(width / image.width, height / image.height)
        size = round(image.width * factor), round(image.height * factor)
        image = image.resize(size, Image.Resampling.LANCZOS)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        image.save(output / f"{file.stem}.png", compress_level=level)


def bucket_of(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Sides near an image's ratio, multiples of 64, of about `resolution` squared pixels."""
    ratio_of_sides = (size[0] / size[1]) ** 0.5
    sides = resolution * ratio_of_sides, resolution / ratio_of_sides
    return max(64, int(sides[0]) // 64 * 64), max(64, int(sides[1]) // 64 * 64)


def encode_files(data: Path, encoder: Any, output: Path) -> None:
    """Encode a dataset as preprocess/latent.py does, once its VAE is there."""
    from modules.shard import Shard
    from preprocess.dataset_images import find_images
    from preprocess.latent_encoding import complete
    from preprocess.latent_index import LatentIndex

    output.mkdir()
    whole = Shard.parse(None)
    tasks, _ = find_images(data, whole)
    made_as = {"vae": encoder.fingerprint, "dtype": "fp32", "posterior": "moments"}
    complete(LatentIndex(output, **made_as, shard=whole), tasks, encoder, 2, None)


def encode_bare(vae: Any, batch: Any) -> None:
    """Let the VAE's encoder compute, and nothing else."""
    import torch

    with torch.inference_mode():
        vae.encode(batch)


def _rates(count: int, ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Images a second of both, and their ratio: above 1 ours makes more."""
    rates = [f"{count / statistics.median(each):.1f}" for each in (ours, theirs)]
    return [*rates, ratio(theirs, ours)]


if __name__ == "__main__":
    sys.exit(main())
