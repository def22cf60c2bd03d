"""Encode a dataset's images with a VAE, once, so that training reads latents.

Writes latents/<name>.npy, float32 (C, h, w), unscaled. A second run encodes only images that are
new or changed, or all of them if the VAE is another; latents/index.jsonl knows. With --flip
mirrored images are encoded too, into latents_flipped/, for `flip` of the dataset; with --text the
captions, into text/.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from modules.buckets import Size
from modules.dataset_folder import flipped_folder
from modules.shard import Shard
from preprocess.dataset_images import Task, check_multiples, find_images
from preprocess.decoding import Decoded, decode_ahead
from preprocess.job import Counts, make_parser, run_command, track
from preprocess.latent_index import LatentIndex

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from preprocess.vae_encoder import VAEEncoder


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
    flip: bool = False,
    shard: str | None = None,
) -> Counts:
    """Encode the images that buckets.json of `directory` lists, with the VAE of `model` or `vae`.

    Images are images/<name>.png, or in older datasets <name>.png. A latent is a sample of the
    VAE's posterior that depends on the image's content only. `num_workers` threads decode while
    the VAE encodes; `dtype` is fp32 or bf16, since VAEs overflow in fp16. With `flip` each image
    is encoded mirrored, too, into latents_flipped/ beside latents/; what is counted is latents.
    With `shard` "2/4" the second of four parts is done; parts may run at once, on machines that
    share the directory.

    Raises:
        ValueError: an argument is wrong, or there is no dataset or no VAE.
    """
    from preprocess.vae_encoder import load_encoder  # here, since torch takes seconds to import

    part = Shard.parse(shard)
    source = Path(directory)
    target = Path(output) if output is not None else source / "latents"
    if target.resolve() == (source / "text").resolve():
        raise ValueError(f"{target}: is for cached captions; name another folder for latents")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    tasks, failed = find_images(source, part)
    encoder = load_encoder(vae or model, device=device, dtype=dtype)
    check_multiples(tasks, encoder.scale_factor)
    folders = {target: False, **({flipped_folder(target.resolve()): True} if flip else {})}
    results = []
    for folder, is_flipped in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        index = LatentIndex(
            folder, vae=encoder.fingerprint, dtype=dtype, is_flipped=is_flipped, shard=part
        )
        results.append(_complete(index, tasks, encoder, batch_size, num_workers))
    failed += [line for result in results for line in result.failed]
    return Counts(
        done=sum(result.done for result in results),
        skipped=sum(result.skipped for result in results),
        failed=list(dict.fromkeys(failed)),  # an image that can't be read fails twice
    )


def _complete(
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
    finally:
        readers.shutdown(cancel_futures=True)
        writer.shutdown()


_CAPTION_OPTIONS = (
    *("prefix", "suffix", "prompt", "trigger_word", "folder_words"),
    *("max_token_length", "clip_skip"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        output="default: latents/ of the dataset",
        num_workers="threads that decode; default: one per processor, at most 8",
        batch_size=4,
        shard=True,
    )
    parser.add_argument(
        *("-m", "--model"),
        required=True,
        help="base model or VAE: directory, file or hub id",
    )
    parser.add_argument("--vae", help="another VAE than the model's: directory, file or hub id")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="precision")
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    parser.add_argument(
        "--flip", action="store_true", help="also encode mirrored images, into latents_flipped/"
    )
    parser.add_argument("--text", action="store_true", help="also encode the captions, into text/")
    parser.add_argument("--prefix", help="with --text: stands before every caption")
    parser.add_argument("--suffix", help="with --text: stands behind every caption")
    parser.add_argument("--prompt", help="with --text: stands for every caption")
    parser.add_argument("--trigger_word", help="with --text: is put into every caption")
    parser.add_argument(
        "--folder_words",
        action="store_true",
        default=None,
        help="with --text: captions of images without one, as `repeats: folders` has them",
    )
    for option in ("--max_token_length", "--clip_skip"):
        parser.add_argument(option, type=int, help="with --text: as in the run's model section")
    arguments = vars(parser.parse_args(argv))
    captions = {key: arguments.pop(key) for key in _CAPTION_OPTIONS}
    if not arguments["text"]:
        for key, value in captions.items():
            if value is not None:
                parser.error(f"--{key}: has no effect without --text")
    with_text = arguments.pop("text")
    given = {key: value for key, value in captions.items() if value is not None}
    return run_command(lambda: _run(arguments, given if with_text else None))


def _run(arguments: Mapping[str, Any], captions: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """Encode captions, which is quick, and images; return a summary and the failures.

    Captions alone, if the model works on pixels.
    """
    from preprocess.vae_encoder import NoVAE

    results = {}
    if captions is not None:
        from preprocess.text_cache import cache_text

        keys = ("directory", "model", "batch_size", "dtype", "device", "shard")
        results["text"] = cache_text(
            **{key: arguments[key] for key in keys},
            **captions,
        )
    try:
        results["latents"] = latent(**arguments)
    except NoVAE:
        if not results or arguments["flip"]:
            raise
    lines = [
        f"{arguments['directory']}: {kind}: {r.done} encoded, {r.skipped} kept, "
        f"{len(r.failed)} failed"
        for kind, r in results.items()
    ]
    return "\n".join(lines), [line for result in results.values() for line in result.failed]


if __name__ == "__main__":
    sys.exit(main())
