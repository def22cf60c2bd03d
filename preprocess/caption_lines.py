"""All captions of a dataset in captions.jsonl, in the place of a file for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from modules.caption_lines import FILE, CaptionLines
from modules.captions import CaptionFiles, caption_paths, read_captions
from modules.files import write_atomically
from modules.store import LocalStore


def pack_captions(source: Path, target: Path, names: Sequence[str]) -> int:
    """Write captions.jsonl of `target` with the captions that `source` has; return how many.

    Raises:
        ValueError: a caption can't be read.
    """
    captions = CaptionFiles(LocalStore(source), names)
    count = len(names) - len(captions.missing)
    if not count:
        return 0

    def write(file: BinaryIO) -> None:
        for line in _lines(captions, names):
            file.write(line)

    write_atomically(target / FILE, write)
    return count


def remove_captions(directory: Path, names: Sequence[str]) -> int:
    """Delete the caption files whose text captions.jsonl has; return how many.

    An image's files stay if one of them, though it may not be read, says something else.
    """
    store, removed = LocalStore(directory), 0
    if not store.is_file(FILE):
        return 0
    lines = CaptionLines(store, names)
    for number in np.flatnonzero(lines.known).tolist():
        paths = caption_paths(directory, names[number])
        texts = lines.read(number)
        if all(read_captions(path) == texts for path in paths):
            for path in paths:
                path.unlink()
            removed += len(paths)
    return removed


def _lines(captions: CaptionFiles, names: Sequence[str]) -> Iterator[bytes]:
    for number, name in enumerate(names):
        texts = captions.read(number)
        if texts is not None:
            entry = {"name": name, "captions": texts}
            yield (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8")
