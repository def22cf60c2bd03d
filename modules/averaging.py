"""An exponential moving average of what is trained (Polyak & Juditsky 1992)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

Weights = Callable[[], contextlib.AbstractContextManager]
"""Makes a context in which the parameters hold certain weights."""


def saved_versions(average: MovingAverage | None, trained: Weights) -> dict[str, Weights]:
    """What is saved, by what it adds to a name: the trained weights, their average, or both."""
    if average is None:
        return {"": trained}
    averaged: Weights = average.swapped_in
    return {"": averaged} if average.replaces else {"": trained, "-ema": averaged}


class MovingAverage:
    """Follows parameters: after each step, average += (1 - decay) * (parameters - average).

    In the first steps the decay is lower, (1 + n) / (10 + n) after n steps, so that a short run's
    average is not mostly its start. `replaces`: saved instead of the parameters, not beside them;
    `is_sampled`: images are drawn with it.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        decay: float,
        replaces: bool = False,
        is_sampled: bool = True,
    ):
        self.decay = decay
        self.replaces = replaces
        self.is_sampled = is_sampled
        self.updates = 0
        self._parameters = list(parameters)
        self._average: list[Tensor] = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in as they are after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1 - decay)

    def tensors(self) -> list[Tensor]:
        """The average itself, in the order of the parameters."""
        return self._average

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the parameters hold their average for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
