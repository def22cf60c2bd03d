"""Encode a dataset's images with a VAE, once, so that training reads latents.

Writes latents/<name>.npy, float32 (C, h, w), unscaled. A second run encodes only images that are
new or changed, or all of them if the VAE is another; latents/index.jsonl knows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from modules.buckets import BucketIndex, Size
from modules.files import files_by_name
from modules.images import IMAGE_SUFFIXES
from preprocess.decoding import Decoded, decode_ahead
from preprocess.job import run_command, track
from preprocess.latent_index import LatentIndex, Task
from preprocess.sources import RESULTS

if TYPE_CHECKING:
    from preprocess.vae_encoder import VAEEncoder


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What `latent` did, in images."""

    done: int
    skipped: int
    """Encoded by an earlier run with the same VAE and precision, and unchanged since."""
    failed: list[str]
    """A line for each that couldn't be encoded."""


def latent(
    *,
    directory: str | Path,
    model: str,
    output: str | Path | None = None,
    vae: str | None = None,
    batch_size: int = 4,
    num_workers: int | None = None,
    dtype: str = "fp32",
    device: str | None = None,
) -> Encoded:
    """Encode the images that buckets.json of `directory` lists, with the VAE of `model` or `vae`.

    Images are images/<name>.png, or in older datasets <name>.png. A latent is a sample of the
    VAE's posterior that depends on the image's content only. `num_workers` threads decode while
    the VAE encodes; `dtype` is fp32 or bf16, since VAEs overflow in fp16.

    Raises:
        ValueError: an argument is wrong, or there is no dataset or no VAE.
    """
    from preprocess.vae_encoder import load_encoder  # here, since torch takes seconds to import

    source = Path(directory)
    target = Path(output) if output is not None else source / "latents"
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    buckets = BucketIndex.load(source / "buckets.json").buckets
    tasks, failed = _find_images(buckets, source)
    encoder = load_encoder(vae or model, device=device, dtype=dtype)
    _check_buckets(buckets, encoder.scale_factor)
    target.mkdir(parents=True, exist_ok=True)
    index = LatentIndex(target, vae=encoder.fingerprint, dtype=dtype)
    pending = [task for task in tasks if not index.has(task)]
    index.remove_outdated(pending)
    batches = _make_batches(pending, batch_size)
    outcomes = _encode(batches, encoder, index, num_workers=num_workers)
    done, unchanged = 0, []
    for outcome in track(outcomes, total=len(pending), description="latents"):
        if outcome.error:
            failed.append(outcome.error)
            index.forget(outcome.entry["name"])
        elif outcome.pixel_values is None:
            unchanged.append(outcome.entry)
        else:
            done += 1
    index.journal.append(unchanged)
    index.journal.rewrite()
    skipped = len(tasks) - len(pending) + len(unchanged)
    return Encoded(done=done, skipped=skipped, failed=failed)


def _find_images(
    buckets: Mapping[Size, Sequence[str]], source: Path
) -> tuple[list[Task], list[str]]:
    """Return a task for each image of the buckets, and a line for each that isn't there."""
    files = {
        name: source / "images" / (name + suffix)
        for name, suffix in files_by_name(source / "images", IMAGE_SUFFIXES).items()
    }
    if any(name not in files for names in buckets.values() for name in names):
        results = [source / folder for folder in RESULTS]
        older = files_by_name(source, IMAGE_SUFFIXES, exclude=results)
        files = {name: source / (name + suffix) for name, suffix in older.items()} | files
    tasks, missing = [], []
    for size, names in buckets.items():
        for name in names:
            if name in files:
                tasks.append(Task(name, size, files[name]))
            else:
                missing.append(f"{source / 'images' / name}: no such image; run bucketing.py again")
    return tasks, missing


def _check_buckets(buckets: Mapping[Size, Sequence[str]], scale_factor: int) -> None:
    for size in buckets:
        if size[0] % scale_factor or size[1] % scale_factor:
            raise ValueError(
                f"bucket {size}: the VAE wants multiples of {scale_factor}; run "
                f"preprocess/bucketing.py with such a --step"
            )


def _make_batches(tasks: Sequence[Task], batch_size: int) -> list[list[Task]]:
    by_size: dict[Size, list[Task]] = {}
    for task in tasks:
        by_size.setdefault(task.size, []).append(task)
    return [
        some[i : i + batch_size]
        for some in by_size.values()
        for i in range(0, len(some), batch_size)
    ]


def _encode(
    batches: Sequence[Sequence[Task]],
    encoder: VAEEncoder,
    index: LatentIndex,
    *,
    num_workers: int | None,
) -> Iterator[Decoded]:
    """Encode batch by batch; threads decode the next ones and write the last one meanwhile."""
    import torch

    workers = max(1, min(os.cpu_count() or 1, 8) if num_workers is None else num_workers)
    readers, writer = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
    writing: Future[None] | None = None
    try:
        for batch in decode_ahead(batches, readers, index):
            images = [image for image in batch if image.pixel_values is not None]
            yield from (image for image in batch if image.pixel_values is None)
            if not images:
                continue
            latents = encoder.encode(
                torch.stack([i.pixel_values for i in batch if i.pixel_values is not None]),
                seeds=[int(image.entry["image_sha256"][:15], 16) for image in images],
            )
            good = np.isfinite(latents).all(axis=(1, 2, 3))
            if writing is not None:
                writing.result()
            entries = [image.entry for image, is_good in zip(images, good, strict=True) if is_good]
            writing = writer.submit(index.write, entries, latents[good])
            for image, is_good in zip(images, good, strict=True):
                fault = f"{image.entry['name']}: its latents are not finite; "
                fault += "try --dtype fp32, or remove the image"
                yield image if is_good else replace(image, error=fault)
        if writing is not None:
            writing.result()
    finally:
        readers.shutdown(cancel_futures=True)
        writer.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        *("-d", "--directory", "--input_dir"), required=True, help="dataset, made by bucketing.py"
    )
    parser.add_argument(
        *("-o", "--output", "--output_dir", "--output_path"),
        help="default: latents/ of the dataset",
    )
    parser.add_argument(
        *("-m", "--model"), required=True, help="diffusers model or VAE: directory or hub id"
    )
    parser.add_argument("--vae", help="another VAE than the model's: directory or hub id")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--num_workers", type=int, help="threads that decode")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _summarise(latent(**vars(arguments)), arguments.directory))


def _summarise(result: Encoded, directory: str) -> tuple[str, list[str]]:
    counts = f"{result.done} encoded, {result.skipped} kept, {len(result.failed)} failed"
    return f"{directory}: latents: {counts}", result.failed


if __name__ == "__main__":
    sys.exit(main())
