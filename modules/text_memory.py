"""Outputs of resting text encoders, kept in memory: each caption is encoded once in a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)

GIB = 2**30
_MIB = 2**20


def remember_text(
    model: DiffusionModel, datasets: Iterable[Any], *, trained: bool, most_gib: float
) -> None:
    """Let a model keep its text encoders' outputs, where they come again and have room.

    `trained`: something that the outputs depend on is trained. Datasets whose captions differ from
    time to time, or may do so for all that is known, are encoded batch by batch as ever.
    """
    given = [part for dataset in datasets for part in _parts(dataset)]
    encoded = [part for part in given if getattr(part, "text", None) is None]
    if trained or not most_gib or not encoded or not model.text_encoders:
        return
    if not all(hasattr(getattr(part, "captions", None), "chances") for part in encoded):
        return
    memory = TextMemory(model.encode_text)
    count, size = sum(len(part.names) for part in encoded), memory.measure()
    if count * size > most_gib * GIB:
        logger.info(
            "text: the text encoders' outputs of %s captions take %.1f GiB, more than "
            "train.text_memory_gib: %g, so they are made in each step; preprocess/latent.py --text "
            "keeps them on disk",
            f"{count:,}",
            count * size / GIB,
            most_gib,
        )
        return
    if any(part.captions.chances() for part in encoded):
        return
    logger.info(
        "text: each caption is encoded once; the outputs of all take up to %.0f MiB of memory",
        count * size / _MIB,
    )
    model.text_memory = memory


class TextMemory:
    """Outputs of `encode` by caption and precision, in the memory of the processor.

    A caption is encoded by itself: what it gives then does not depend, in its last bits, on others
    of its batch, so that a resumed run meets the same numbers.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Mapping[str, Tensor]]) -> None:
        self._encode = encode
        self._held: dict[tuple[str, torch.dtype | None], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of captions as `encode` gives them, (B, ...), on its device."""
        each = [self._read(caption) for caption in captions]
        return {key: torch.cat([outputs[key] for outputs in each]) for key in each[0]}

    @torch.no_grad()
    def measure(self) -> int:
        """Bytes of one caption's outputs."""
        return sum(output.nbytes for output in self._encode([""]).values())

    @torch.no_grad()
    def _read(self, caption: str) -> dict[str, Tensor]:
        key = caption, _autocast_dtype()
        if key not in self._held:
            outputs = dict(self._encode([caption]))
            self._held[key] = {name: _keep(output) for name, output in outputs.items()}
            self._device = next(iter(outputs.values())).device
        held = self._held[key]
        return {name: value.to(self._device, non_blocking=True) for name, value in held.items()}


def _keep(output: Tensor) -> Tensor:
    """The tensor in the processor's memory, from where a card reads it without being waited for."""
    kept = output.cpu()
    return kept.pin_memory() if output.is_cuda else kept


def _autocast_dtype() -> torch.dtype | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return None


def _parts(dataset: Any) -> Sequence[Any]:
    """The datasets of a mixture; of another, itself."""
    parts = getattr(dataset, "parts", None)
    return [dataset] if parts is None else [part.dataset for part in parts]
