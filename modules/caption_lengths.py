"""Captions that are longer than what the text encoders read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modules.dataset_files import list_names

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


MOST_COUNTED = 2000
"""Captions whose tokens are counted when a run starts; `--check` counts those of all."""


def describe_truncated(
    model: DiffusionModel, dataset: Any, *, most: int | None = None
) -> str | None:
    """Say which captions of a dataset are cut, and what would read them; None if none is.

    `most` of them are looked at, spread over all, or every one.
    """
    if not hasattr(dataset, "whole_caption"):
        return None
    names = getattr(dataset, "names", None)
    cut: dict[str, int] = {}
    step = max(1, -(-len(dataset) // (most or len(dataset))))
    looked_at = range(0, len(dataset), step)
    for number in looked_at:
        name, caption = names[number] if names else str(number), dataset.whole_caption(number)
        for encoder in model.text_encoders:
            total, read = encoder.token_count(caption)
            if read < total:
                cut[name] = max(total, cut.get(name, 0))
    if not cut:
        return None
    longest = sorted(cut, key=cut.__getitem__, reverse=True)
    listed = list_names([f"{name} ({cut[name]} tokens)" for name in longest])
    advice = "; model.max_token_length: 150 or 225 reads more" if _can_read_more(model) else ""
    of = f"{len(looked_at)}{' that were looked at' if step > 1 else ''}"
    return f"captions: the ends of {len(cut)} of {of} are not read: {listed}{advice}"


def _can_read_more(model: DiffusionModel) -> bool:
    return all(encoder.length is None and encoder.chunks < 3 for encoder in model.text_encoders)
