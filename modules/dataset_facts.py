"""What a dataset's images are, for the metadata of files: folders, repeats, buckets, tags."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modules.prepared_dataset import PreparedDataset

logger = logging.getLogger(__name__)

MOST_TAGS = 10_000
"""So many are written, the most frequent ones."""
_MOST_DISTINCT = 500_000
"""Captions with more different tags are sentences; counting them would only take memory."""


def dataset_facts(dataset: Any) -> dict[str, str]:
    """Return the `ss_*` values of sd-scripts that a dataset knows; reads every caption once.

    Counts are those of an epoch, with repeats, except in ss_tag_frequency. A value that differs
    between the datasets of a mixture is left out.
    """
    facts = {"ss_num_train_images": str(sum(map(len, dataset.buckets)))}
    counts = bucket_counts(dataset)
    if counts:
        buckets = {
            str(number): {"resolution": list(size), "count": count}
            for number, (size, count) in enumerate(sorted(counts.items()))
        }
        facts["ss_resolution"] = str(commonest_size(dataset))
        facts["ss_bucket_info"] = json.dumps({"buckets": buckets})
    parts = prepared_parts(dataset)
    if not parts:
        return facts
    facts["ss_dataset_dirs"] = json.dumps(_folders(parts), ensure_ascii=False)
    frequency = tag_frequency(dataset)
    if frequency is not None:
        facts["ss_tag_frequency"] = json.dumps(frequency, ensure_ascii=False)
    return facts | _settings([part for _, part in parts])


def bucket_counts(dataset: Any) -> Counter[tuple[int, int]]:
    """Count an epoch's images by width and height of their bucket, if the dataset tells it."""
    counts: Counter[tuple[int, int]] = Counter()
    for size, bucket in zip(getattr(dataset, "bucket_sizes", ()), dataset.buckets, strict=False):
        counts[size] += len(bucket)
    return counts


def commonest_size(dataset: Any) -> tuple[int, int] | None:
    """Return width and height that most of an epoch's images have; of equals the largest."""
    counts = bucket_counts(dataset)
    return max(counts, key=lambda size: (counts[size], size[0] * size[1], size), default=None)


def trigger_word(dataset: Any) -> str | None:
    """Return the word that is put into every caption, if all datasets have the same."""
    words = {part.captions.process.trigger_word for _, part in prepared_parts(dataset)}
    return words.pop() or None if len(words) == 1 else None


def tag_frequency(dataset: Any) -> dict[str, dict[str, int]] | None:
    """Count the tags of every folder's captions; None if they are too many to be tags.

    Captions are as trained on, with nothing left to chance; tags stand between commas and are
    written small, as sd-scripts does. The most frequent come first.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    distinct = 0
    for folder, part, number in _images(prepared_parts(dataset)):
        own = counts[folder]
        before = len(own)
        own.update(tag for t in part.whole_caption(number).split(",") if (tag := t.strip().lower()))
        distinct += len(own) - before
        if distinct > _MOST_DISTINCT:
            logger.info("the captions are no tags, so none are counted for the metadata")
            return None
    least = _least_count(counts)
    return {
        folder: {tag: count for tag, count in own.most_common() if count > least}
        for folder, own in counts.items()
    }


def prepared_parts(dataset: Any) -> list[tuple[str, PreparedDataset]]:
    """Return the prepared datasets in a dataset by name: itself, or those of a mixture."""
    if isinstance(dataset, PreparedDataset):
        return [(_folder_name(dataset), dataset)]
    found = []
    for part in getattr(dataset, "parts", ()):
        found += [(part.name, prepared) for _, prepared in prepared_parts(part.dataset)]
    return found


def _images(
    parts: list[tuple[str, PreparedDataset]],
) -> Iterator[tuple[str, PreparedDataset, int]]:
    """Yield folder, dataset and number of every image.

    A folder is one of the dataset's own, or else the dataset; in a mixture it has both names.
    """
    for name, part in parts:
        for number, image in enumerate(part.names):
            folder, slash, _ = image.partition("/")
            folder = folder if slash else name
            yield (folder if len(parts) == 1 or not slash else f"{name}/{folder}"), part, number


def _folders(parts: list[tuple[str, PreparedDataset]]) -> dict[str, dict[str, int]]:
    """Count images and repeats of every folder."""
    times = {id(part): _times(part) for _, part in parts}
    found: dict[str, dict[str, int]] = {}
    for folder, part, number in _images(parts):
        repeats = int(times[id(part)][number])
        entry = found.setdefault(folder, {"n_repeats": repeats, "img_count": 0})
        entry["img_count"] += 1
    return found


def _times(part: PreparedDataset) -> np.ndarray:
    """How often each image stands in an epoch."""
    indices = np.concatenate([np.asarray(bucket, dtype=np.int64) for bucket in part.buckets])
    return np.bincount(indices % len(part), minlength=len(part))


def _settings(parts: list[PreparedDataset]) -> dict[str, str]:
    """What is set alike for all datasets."""
    values: dict[str, Callable[[PreparedDataset], Any]] = {
        "ss_caption_dropout_rate": lambda part: part.captions.process.caption_dropout,
        "ss_caption_tag_dropout_rate": lambda part: part.captions.process.tag_dropout,
        "ss_shuffle_caption": lambda part: part.captions.process.shuffle,
        "ss_keep_tokens": lambda part: part.captions.process.keep_tokens,
        "ss_flip_aug": lambda part: part.augmentation.flip > 0,
    }
    found = {key: {value(part) for part in parts} for key, value in values.items()}
    return {key: str(each.pop()) for key, each in found.items() if len(each) == 1}


def _least_count(counts: dict[str, Counter[str]]) -> int:
    """The count that a tag must exceed so that at most `MOST_TAGS` remain; 0 if all do."""
    every = sorted((count for own in counts.values() for count in own.values()), reverse=True)
    return every[MOST_TAGS] if len(every) > MOST_TAGS else 0


def _folder_name(dataset: PreparedDataset) -> str:
    address = str(dataset.store).rstrip("/")
    return address.rpartition("/")[2] if "://" in address else Path(address).resolve().name
