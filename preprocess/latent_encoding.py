"""The images of a dataset through a VAE: decoding, encoding and writing beside each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from modules.buckets import Size
from preprocess.dataset_images import Task
from preprocess.decoding import Decoded, decode_ahead
from preprocess.job import Counts, track
from preprocess.latent_index import LatentIndex

if TYPE_CHECKING:
    from preprocess.vae_encoder import VAEEncoder

logger = logging.getLogger(__name__)


def complete(
    index: LatentIndex,
    tasks: Sequence[Task],
    encoder: VAEEncoder,
    batch_size: int,
    num_workers: int | None,
) -> Counts:
    """Encode what is not in an index yet; what has a new date only is read, and reused too."""
    pending = [task for task in tasks if not index.has(task)]
    index.remove_outdated(pending)
    batches = _make_batches(pending, batch_size)
    outcomes = _encode(batches, encoder, index, num_workers=num_workers)
    done, failed, unchanged = 0, [], []
    description = "flipped latents" if index.is_flipped else "latents"
    logger.info("%s: %d reused, %d new", description, len(tasks) - len(pending), len(pending))
    for outcome in track(outcomes, total=len(pending), description=description):
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
    return Counts(done=done, skipped=skipped, failed=failed)


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
    except Exception as error:
        if writing is not None and (unwritten := writing.exception()) not in (None, error):
            raise unwritten from error  # type: ignore[misc]  # it was there before
        raise
    finally:
        readers.shutdown(cancel_futures=True)
        writer.shutdown()
