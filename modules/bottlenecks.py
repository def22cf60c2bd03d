"""What makes steps slow, told with what mends it: data that is waited for, memory that is full."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from modules.step_clock import Times

logger = logging.getLogger(__name__)

_DATA_SHARE = 0.2  # of a step's time
_FULL = 0.95  # of a card's memory; beyond, Windows moves tensors to the host's
_ENOUGH_STEPS = 20  # for a mean: workers deliver in bursts
_ENOUGH_SECONDS = 2.0  # of waiting, so that toys go without advice
_QUIET_STEPS = 1000  # between two hints of a kind


class Bottlenecks:
    """Looks at each logged line and gives a hint, seldom twice.

    Args:
        num_workers: processes that read the dataset now.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._hinted: dict[str, int] = {}  # the step, by kind
        self._is_first = True
        self._forget()

    def look(self, times: Times, memory: Mapping[str, float], *, step: int) -> None:
        """Warn of what slows the steps of these times and this memory."""
        self._look_at_memory(memory, step)
        if self._is_first:  # workers start, kernels are chosen
            self._is_first = False
            return
        self._steps += times.steps
        self._seconds += times.seconds
        self._waited += times.phases.get("data", 0.0)
        if self._steps < _ENOUGH_STEPS:
            return
        share = self._waited / self._seconds
        if share > _DATA_SHARE and self._waited > _ENOUGH_SECONDS and self._is_due("data", step):
            logger.warning(
                "step %d: waits for data in %.0f %% of its time (%.2f of %.2f s); set "
                "dataset.num_workers higher (now %d), cache latents (preprocess/latent.py), pack "
                "cached ones (preprocess/pack.py), or use a faster disk",
                *(step, 100 * share, self._waited / self._steps, self._seconds / self._steps),
                self._num_workers,
            )
        self._forget()

    def _look_at_memory(self, memory: Mapping[str, float], step: int) -> None:
        if memory.get("memory/used_share", 0.0) > _FULL and self._is_due("memory", step):
            logger.warning(
                "step %d: the card's memory is %.0f %% full (the run's tensors: %.1f GiB at most), "
                "where steps slow down or fail; use train.gradient_checkpointing, a lower "
                "train.batch_size, or end other programs on the card",
                *(step, 100 * memory["memory/used_share"], memory["memory/peak_gib"]),
            )

    def _is_due(self, kind: str, step: int) -> bool:
        if kind in self._hinted and step - self._hinted[kind] < _QUIET_STEPS:
            return False
        self._hinted[kind] = step
        return True

    def _forget(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0


def measure_memory(device: torch.device) -> dict[str, float]:
    """A card's memory, empty without CUDA: the peak of tensors since the last call, the share used.

    The share counts all programs, and what torch keeps for later.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_gib": peak / 2**30, "memory/used_share": 1 - free / total}
