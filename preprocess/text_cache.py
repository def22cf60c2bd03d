"""Encode a dataset's captions with a model's text encoders, once, for runs that don't train them.

`python preprocess/latent.py --text` calls this. Writes text/<name>.npz, float32, and
text/index.jsonl, by which a second run encodes only captions that are new or changed, or all of
them if the text encoders are others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modules.buckets import BucketIndex
from modules.caption_text import CaptionProcessor
from modules.captions import CaptionFiles
from modules.files import write_atomically
from modules.repeats import folder_words as words_of_folder
from modules.shard import Shard
from modules.store import LocalStore
from modules.text_cache import EMPTY, TEXT_PIECES, TextCache
from preprocess.job import Counts, track

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)


def cache_text(
    *,
    directory: str | Path,
    model: str,
    output: str | Path | None = None,
    prefix: str = "",
    suffix: str = "",
    prompt: str | None = None,
    trigger_word: str = "",
    folder_words: bool = False,
    max_token_length: int = 75,
    clip_skip: int | None = None,
    batch_size: int = 16,
    dtype: str = "fp32",
    device: str | None = None,
    shard: str | None = None,
) -> Counts:
    """Encode the final captions of the images of `directory`, and the empty caption.

    A final caption is `prefix`, the image's own or `prompt`, and `suffix`, with `trigger_word` in
    it, as the arguments of the run's dataset say; `max_token_length` and `clip_skip` are those of
    its model. An image without a caption counts as empty, or with `folder_words` takes the words of
    its folder `10_sks dog`, as `repeats: folders` does. `shard` is as in `latent`.

    Raises:
        ValueError: an argument is wrong, or there is no dataset or no model.
    """
    from modules.models import load
    from modules.models.prompts import set_prompts
    from preprocess.device import choose_device, choose_dtype

    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    part = Shard.parse(shard)
    source = Path(directory)
    process = CaptionProcessor(prefix=prefix, suffix=suffix, trigger_word=trigger_word)
    captions, failed = _final_captions(
        source, process, part, prompt=prompt, folder_words=folder_words
    )
    place, precision = choose_device(device), choose_dtype(dtype)
    encoder = load(model, weights=TEXT_PIECES)
    set_prompts(encoder, max_token_length=max_token_length, clip_skip=clip_skip)
    cache = TextCache(Path(output) if output is not None else source / "text", part)
    key = {"text": encoder.text_fingerprint(), "dtype": dtype}
    _remove_outdated(cache, captions, key)
    pending = {name: text for name, text in captions.items() if cache.find(name) is None}
    for each in encoder.text_encoders:
        each.module.to(place, precision).eval()
    logger.info("text: %d reused, %d new", len(captions) - len(pending), len(pending))
    outcomes = _encode(pending, encoder, cache, key, batch_size)
    faults = dict(track(outcomes, total=len(pending), description="text"))
    cache.journal.rewrite()
    done = sum(not fault for name, fault in faults.items() if name != EMPTY)
    failed += [fault for fault in faults.values() if fault]
    skipped = len(captions.keys() - pending.keys() - {EMPTY})
    return Counts(done=done, skipped=skipped, failed=failed)


def _final_captions(
    source: Path,
    process: CaptionProcessor,
    part: Shard,
    *,
    prompt: str | None,
    folder_words: bool,
) -> tuple[dict[str, str], list[str]]:
    """Return the final captions by image, and a line for each that can't be read."""
    buckets = BucketIndex.load(source / "buckets.json").buckets
    names = [name for some in buckets.values() for name in some if part.owns(name)]
    captions = {EMPTY: ""} if part.owns(EMPTY) else {}
    if prompt is not None:
        return captions | dict.fromkeys(names, process.whole([prompt])), []
    failed: list[str] = []
    several = empty = 0
    files = CaptionFiles(LocalStore(source), names)
    for number, name in enumerate(names):
        words = words_of_folder(name) if folder_words else ""
        try:
            texts = files.read(number)
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        read = texts or [words]
        captions[name] = process.whole(read)
        several += len(read) > 1
        empty += texts is None and not words
    if empty:
        logger.info("%s: %d images have no caption; an empty one is encoded", source, empty)
    if several:
        logger.warning(
            "%s: %d images have several captions, so training can't use what is encoded here",
            *(source, several),
        )
    return captions, failed


def _remove_outdated(cache: TextCache, captions: Mapping[str, str], key: Mapping[str, str]) -> None:
    """Remove what is of other encoders or captions, so that no stop can leave a mixture."""
    cache.directory.mkdir(parents=True, exist_ok=True)
    entries = cache.journal.entries
    others = [name for name, entry in entries.items() if not key.items() <= entry.items()]
    if others:
        logger.info(
            "%s: %d captions were encoded by other text encoders or in another precision; "
            "encoding them again",
            cache.directory,
            len(others),
        )
    changed = [name for name in entries if entries[name].get("caption") != captions.get(name)]
    for name in {*others, *changed}:
        cache.path(name).unlink(missing_ok=True)
        del entries[name]
    cache.journal.rewrite()


def _encode(
    captions: Mapping[str, str],
    encoder: DiffusionModel,
    cache: TextCache,
    key: Mapping[str, str],
    batch_size: int,
) -> Iterator[tuple[str, str]]:
    """Encode and write captions, equal ones once; yield (name, fault), empty if there is none."""
    names: dict[str, list[str]] = {}
    for name, caption in captions.items():
        names.setdefault(caption, []).append(name)
    different = list(names)
    for start in range(0, len(different), batch_size):
        part = different[start : start + batch_size]
        for caption, arrays in zip(part, _encode_batch(encoder, part), strict=True):
            for name in names[caption]:
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    yield name, f"{name}: its encoded caption is not finite; try --dtype fp32"
                    continue
                write_atomically(cache.path(name), partial(np.savez, **arrays))
                cache.journal.append([{"name": name, "caption": caption, **key}])
                yield name, ""


def _encode_batch(encoder: DiffusionModel, captions: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Return each caption's arrays, float32; a batch that doesn't fit into memory is halved.

    Raises:
        ValueError: not even one caption fits into memory.
    """
    import torch

    try:
        with torch.inference_mode():
            outputs = encoder.encode_text(captions)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():  # not every backend has a class
            raise
        if len(captions) == 1:
            raise ValueError(
                "one caption doesn't fit into memory; use --dtype bf16 or --device cpu"
            ) from error
    else:
        arrays = {key: tensor.float().cpu().numpy() for key, tensor in outputs.items()}
        return [{key: array[i] for key, array in arrays.items()} for i in range(len(captions))]
    # Only out here is the error gone, and with it what kept the memory.
    middle = len(captions) // 2
    logger.warning("out of memory: %d captions are encoded in two halves", len(captions))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _encode_batch(encoder, captions[:middle]) + _encode_batch(encoder, captions[middle:])
