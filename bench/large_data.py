"""Measure a run's start on datasets of many images: time, memory, stage by stage.

    python bench/large_data.py                    # 100, 10,000 and 1,000,000 images, packed
    python bench/large_data.py --single 100000    # a file for each latent and caption
    python bench/large_data.py --noted            # with images, and what scripts note of them

Latents have a few positions only: what is measured is names, not bytes. Each dataset is opened in
a fresh process that has imported what training imports. Seconds are of the processor, so that
other work on the machine doesn't count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from bench.processes import peak_memory
from modules.buckets import BucketIndex, Size
from modules.caption_lines import FILE
from modules.packed_latents import packed_folder
from preprocess.latent_shards import write_shard

STAGES = (
    *("imports", "buckets.json", "dataset", "shapes", "findings", "epoch", "first batch"),
    *("in all", "peak MiB"),
)
_BATCH_SIZE = 4
_FACTOR = 8  # pixels of a latent position
_SHARD = 16_384  # rows of a file: 1 GiB of SD1's latents at 512x512
_FOLDER = 1000  # images in a folder


def make_dataset(directory: Path, count: int, *, single: bool = False, noted: bool = False) -> None:
    """Write a dataset of `count` images in 20 buckets, packed or a file for each of everything.

    `noted` adds images/, of a byte each, images.jsonl and latents/index.jsonl.
    """
    sizes = [(_FACTOR * w, _FACTOR * h) for w in range(1, 6) for h in range(1, 5)]
    names = [f"folder_{n // _FOLDER:04d}/picture_{n:07d}" for n in range(count)]
    buckets = {size: names[place :: len(sizes)] for place, size in enumerate(sizes)}
    BucketIndex(buckets).save(directory / "buckets.json")
    if single:
        _write_files(directory, buckets)
    else:
        _write_packed(directory, buckets)
    if noted:
        _write_notes(directory, buckets)


def caption_of(name: str) -> str:
    """Return a caption of the length that captions have."""
    return f"a picture of {name}, with words as long as those of most captions, some 20 in all"


def measure(directory: Path) -> dict[str, float]:
    """Open a dataset as training does; return the seconds of each stage and the peak in MiB.

    `dataset` reads buckets.json, too, `epoch` draws an epoch's order, which `first batch` does
    again, and `in all` is what a run does after its imports.
    """

    took: dict[str, float] = {}
    with _timed(took, "imports"):
        import modules.assembly  # noqa: F401
        from modules.buckets import BucketBatchSampler
        from modules.data_findings import find_in_data
        from modules.dataset import LatentDataset
        from modules.loading import make_source, step_groups
    with _timed(took, "buckets.json"):
        BucketIndex.load(directory / "buckets.json")
    with _timed(took, "dataset"):
        dataset = LatentDataset(str(directory))
        dataset.summary()
    with _timed(took, "shapes"):
        dataset.check_latent_shapes(_FACTOR, 4)
    with _timed(took, "findings"):
        found = find_in_data(dataset)
    sampler = BucketBatchSampler(dataset.buckets, batch_size=_BATCH_SIZE)
    with _timed(took, "epoch"):
        sampler.plan(0)
    with _timed(took, "first batch"):
        groups = step_groups(make_source(dataset, sampler), gradient_accumulation_steps=1)
        assert next(groups)[0].batch.names
    stages = ("dataset", "shapes", "findings", "first batch")
    took["in all"] = sum(took[stage] for stage in stages)
    took |= {"images": len(dataset), "batches": len(sampler), "found": len(found)}
    took["peak MiB"] = peak_memory()
    return took


def measure_afresh(directory: Path) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _write_files(directory: Path, buckets: dict[Size, list[str]]) -> None:
    for (width, height), names in buckets.items():
        latents = np.zeros((4, height // _FACTOR, width // _FACTOR), dtype=np.float32)
        for name in names:
            path = directory / "latents" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, latents)
            caption = directory / "captions" / f"{name}.txt"
            caption.parent.mkdir(parents=True, exist_ok=True)
            caption.write_text(caption_of(name), encoding="utf-8")


def _write_packed(directory: Path, buckets: dict[Size, list[str]]) -> None:
    number = 0
    for size, names in buckets.items():
        width, height = size
        row = np.zeros((4, height // _FACTOR, width // _FACTOR), dtype=np.float32)
        for start in range(0, len(names), _SHARD):
            some = names[start : start + _SHARD]
            path = (
                directory / packed_folder("latents") / f"{width}x{height}-{number:05d}.safetensors"
            )
            write_shard(path, some, [row] * len(some), shape=row.shape, dtype="F32")
            number += 1
    with (directory / FILE).open("w", encoding="utf-8") as file:
        for names in buckets.values():
            for name in names:
                file.write(json.dumps({"name": name, "captions": [caption_of(name)]}) + "\n")


def _write_notes(directory: Path, buckets: dict[Size, list[str]]) -> None:
    """Write what bucketing and latent.py would; of a thousand images one is another's twin."""
    (directory / "latents").mkdir(exist_ok=True)
    with (
        (directory / "images.jsonl").open("w", encoding="utf-8") as images,
        (directory / "latents" / "index.jsonl").open("w", encoding="utf-8") as latents,
    ):
        number = 0
        for size, names in buckets.items():
            for name in names:
                path = directory / "images" / f"{name}.png"
                if not path.parent.is_dir():
                    path.parent.mkdir(parents=True)
                path.write_bytes(b"x")
                stamp = {"bytes": 1, "mtime_ns": path.stat().st_mtime_ns}
                digest = hashlib.sha256(str(number - (number % 1000 == 999)).encode()).hexdigest()
                entry = {
                    **{"name": name, "source": f"{name}.jpg", "sha256": digest, **stamp},
                    **{"original_size": size, "bucket": size},
                    **{"resized_size": size, "crop_top_left": [0, 0]},
                }
                images.write(json.dumps(entry) + "\n")
                origin = {"vae": "0" * 64, "dtype": "fp32", "image_sha256": digest}
                latents.write(json.dumps({"name": name, **origin, **stamp}) + "\n")
                number += 1


@contextmanager
def _timed(took: dict[str, float], stage: str) -> Iterator[None]:
    start = time.process_time()
    yield
    took[stage] = time.process_time() - start


def _row(label: str, values: Sequence[str]) -> str:
    return "| " + " | ".join([label, *values]) + " |"


def _show(counts: Sequence[int], make: Callable[..., Any], **options: bool) -> None:
    print(_row("images", STAGES))
    print("|---" * (len(STAGES) + 1) + "|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count, **options)
            took = measure_afresh(Path(folder))
        cells = [
            f"{took[stage]:.0f}" if "MiB" in stage else f"{took[stage]:.2f}" for stage in STAGES
        ]
        print(_row(f"{count:,}", cells), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("counts", nargs="*", type=int, help="numbers of images")
    parser.add_argument("--single", action="store_true", help="a file for each of everything")
    parser.add_argument("--noted", action="store_true", help="with what scripts note of images")
    parser.add_argument("--measure", metavar="DIRECTORY", help="open this dataset alone")
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure))))
    else:
        counts = arguments.counts or [100, 10_000, 1_000_000]
        _show(counts, make_dataset, single=arguments.single, noted=arguments.noted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
