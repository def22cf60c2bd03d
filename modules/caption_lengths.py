"""Captions that are longer than what the text encoders read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modules.dataset_files import list_names

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


def describe_truncated(model: DiffusionModel, dataset: Any) -> str | None:
    """Say which captions of a dataset are cut, and what would read them; None if none is."""
    if not hasattr(dataset, "whole_caption"):
        return None
    cut: dict[str, int] = {}
    for number, name in enumerate(dataset.names):
        caption = dataset.whole_caption(number)
        for encoder in model.text_encoders:
            total, read = encoder.token_count(caption)
            if read < total:
                cut[name] = max(total, cut.get(name, 0))
    if not cut:
        return None
    longest = sorted(cut, key=cut.__getitem__, reverse=True)
    listed = list_names([f"{name} ({cut[name]} tokens)" for name in longest])
    advice = "; model.max_token_length: 150 or 225 reads more" if _can_read_more(model) else ""
    return f"captions: the ends of {len(cut)} of {len(dataset)} are not read: {listed}{advice}"


def _can_read_more(model: DiffusionModel) -> bool:
    return all(encoder.length is None and encoder.chunks < 3 for encoder in model.text_encoders)
