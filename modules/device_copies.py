"""Batches copied to the device beside what it still computes, and not behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from modules.loading import Group, Part


def on_device(groups: Iterator[Group], device: torch.device) -> Iterator[Group]:
    """Yield the groups with their tensors on a CUDA device; on others as they are.

    The host queues a step's work long before the device is through with the one before. A copy
    from pinned memory in a stream of its own runs meanwhile. Groups are read when they are asked
    for, none ahead, so that what a step draws and counts doesn't depend on it.
    """
    return _copied(groups, device) if device.type == "cuda" else groups


def _copied(groups: Iterator[Group], device: torch.device) -> Iterator[Group]:
    stream = torch.cuda.Stream(device)
    for group in groups:
        with torch.cuda.stream(stream):
            copied = [replace(part, batch=part.batch.to(device)) for part in group]
        torch.cuda.current_stream(device).wait_stream(stream)
        for part in copied:
            _hold_until_used(part, torch.cuda.current_stream(device))
        yield copied


def _hold_until_used(part: Part, stream: torch.cuda.Stream) -> None:
    """Let the memory of a batch serve no other copy before `stream` has come past it."""
    for tensor in part.batch.tensors():
        tensor.record_stream(stream)
