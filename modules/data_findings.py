"""What to know of a dataset before it is trained on: twins, small images, files not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modules.buckets import BucketBatchSampler
from modules.dataset_facts import prepared_parts
from modules.files import write_atomically
from modules.prepared_dataset import PreparedDataset

FILE = "data.txt"
"""The file in a run's folder that lists all that the plan's lines stand for."""

_NAMED = 4  # in a line of the plan


@dataclass(frozen=True)
class Finding:
    """One thing that is found, in words, and what it is true of, in words each."""

    text: str
    items: Sequence[str]
    is_of_run: bool = False
    """Of the run's length, not of the dataset."""

    def line(self) -> str:
        """The finding in a line, with the first items."""
        rest = f" and {len(self.items) - _NAMED} more" if self.is_cut else ""
        return f"{self.text}: {', '.join(self.items[:_NAMED])}{rest}"

    @property
    def is_cut(self) -> bool:
        """Whether the line leaves items out."""
        return len(self.items) > _NAMED

    def paragraph(self) -> str:
        """The finding with all items, one a line."""
        return "\n".join([f"{self.text}:", *(f"  {item}" for item in self.items)]) + "\n"


def find_in_data(dataset: Any) -> list[Finding]:
    """Look for images of equal content, images smaller than their bucket, and files not used.

    Content and sizes are what images.jsonl notes of the source files; no image is opened.
    """
    parts = prepared_parts(dataset)
    names = [(part, f"{name}/" if len(parts) > 1 else "") for name, part in parts]
    found = [_duplicates(names), _enlarged(names), _unlisted(names), _idle_captions(names)]
    return [finding for finding in found if finding is not None]


def find_unused(dataset: Any, sampler: BucketBatchSampler, batches: int) -> Finding | None:
    """Name images that a run never sees, since it ends within its first epoch."""
    plan = sampler.plan(0)
    if batches >= len(plan):
        return None
    total = len(dataset)
    seen = np.zeros(total, dtype=bool)
    wanted = np.zeros(total, dtype=bool)
    for number in range(len(plan)):
        images = np.asarray(plan[number]) % total
        wanted[images] = True
        if number < batches:
            seen[images] = True
    names = getattr(dataset, "names", None) or [str(number) for number in range(total)]
    unused = [names[number] for number in np.flatnonzero(wanted & ~seen).tolist()]
    if not unused:
        return None
    return Finding(
        f"never used, since the run ends within its first epoch: {len(unused)} of "
        f"{int(wanted.sum())} images",
        unused,
        is_of_run=True,
    )


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings with all their items as text, if there are any."""
    if findings:
        write_atomically(path, "\n".join(finding.paragraph() for finding in findings))


Named = Sequence[tuple[PreparedDataset, str]]  # with what stands before its images' names


def _duplicates(parts: Named) -> Finding | None:
    """Images of equal content; those whose captions differ first."""
    if not parts:
        return None
    digests = np.concatenate([part.records.digests for part, _ in parts])
    known = np.flatnonzero(digests.any(axis=1))
    if not len(known):
        return None
    rows = np.ascontiguousarray(digests[known]).view(">u8")  # (images, 4)
    order = np.lexsort(rows.T)
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
    ends = np.r_[starts[1:], len(order)]
    groups = [known[order[a:b]] for a, b in zip(starts, ends, strict=True) if b - a > 1]
    if not groups:
        return None
    described = [_describe_twins(parts, group) for group in groups]
    differing = [text for text, differs in described if differs]
    items = differing + [text for text, differs in described if not differs]
    extra = sum(len(group) - 1 for group in groups)
    captions = f", {len(differing)} times with other captions" if differing else ""
    text = f"duplicates: {extra} of {len(digests)} images have the content of another{captions}"
    return Finding(text, items)


def _describe_twins(parts: Named, group: np.ndarray) -> tuple[str, bool]:
    """Name images of equal content; say whether their captions differ."""
    names, captions = [], set()
    for number in sorted(group.tolist()):
        part, before, own = _find(parts, number)
        names.append(f"{before}{part.names[own]}")
        captions.add(part.whole_caption(own))
    return " = ".join(names), len(captions) > 1


def _find(parts: Named, number: int) -> tuple[PreparedDataset, str, int]:
    for part, before in parts:
        if number < len(part):
            return part, before, number
        number -= len(part)
    raise IndexError(number)


def _enlarged(parts: Named) -> Finding | None:
    """Images smaller than their bucket, the most enlarged first."""
    found: list[tuple[float, str]] = []
    for part, before in parts:
        factors = part.records.enlargement()
        for number in np.flatnonzero(factors > 1).tolist():
            width, height = part.records.originals[number].tolist()
            text = f"{before}{part.names[number]} ({width}x{height}, x{factors[number]:.2f})"
            found.append((float(factors[number]), text))
    if not found:
        return None
    found.sort(key=lambda each: -each[0])
    total = sum(len(part) for part, _ in parts)
    text = f"smaller than their bucket, so enlarged: {len(found)} of {total} images"
    return Finding(text, [item for _, item in found])


def _unlisted(parts: Named) -> Finding | None:
    names = [f"{before}{name}" for part, before in parts for name in part.records.unlisted]
    if not names:
        return None
    text = f"never used, since buckets.json doesn't list them: {len(names)} images"
    return Finding(text, names)


def _idle_captions(parts: Named) -> Finding | None:
    files = list(_find_idle(parts))
    if not files:
        return None
    return Finding(f"captions of no image, so not used: {len(files)} files", files)


def _find_idle(parts: Named) -> Iterator[str]:
    for part, before in parts:
        yield from (f"{before}{file}" for file in part.captions.idle)
