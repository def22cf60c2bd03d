"""The files of a bucketed dataset: images/, images.jsonl and buckets.json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from modules.buckets import BucketIndex, Size
from modules.journal import Journal
from modules.shard import Shard

logger = logging.getLogger(__name__)


def open_journal(target: Path, part: Shard) -> Journal:
    """Open images.jsonl, a part's or the whole.

    Raises:
        ValueError: there are images that it doesn't know of.
    """
    has_images = any((target / "images").glob("*"))  # first: another part may just be beginning
    journal = Journal(target / "images.jsonl", part)
    if has_images and not journal.exists:
        raise ValueError(
            f"{target / 'images'}: holds files that bucketing didn't write; name another output"
        )
    journal.rewrite()
    return journal


def write_index(
    finished: dict[str, dict[str, Any]], journal: Journal, target: Path, part: Shard
) -> dict[Size, int]:
    """Write images.jsonl and, of the whole, buckets.json; count the images of each bucket."""
    gone = len(journal.entries.keys() - finished.keys())
    if gone:
        message = "%s: %d images of an earlier run are left out, their sources are gone or bad"
        logger.info(message, target, gone)
    journal.entries = finished
    journal.rewrite()
    buckets: dict[Size, list[str]] = {}
    for name, entry in journal.entries.items():
        width, height = entry["bucket"]
        buckets.setdefault((width, height), []).append(name)
    if buckets and not part.is_part:
        BucketIndex(buckets).save(target / "buckets.json")
    return {size: len(names) for size, names in sorted(buckets.items())}


def image_file(target: Path, name: str) -> Path:
    """The file of an image."""
    return target / "images" / f"{name}.png"
