"""What objects hold, kept aside to be put back exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_FOLLOWED = (Optimizer, LRScheduler, GradScaler)
"""Whose attributes are kept too, where one is found within another."""


class Snapshot:
    """Keeps what tensors and objects hold; copies of tensors wait in the CPU's memory.

    An object's attributes are followed through dictionaries, lists, tuples and sets to their
    tensors; anything else is kept as the object that it is. What is put back is put into the same
    tensors, dictionaries and lists, since others know those: an optimizer its parameters, a
    schedule its optimizer.
    """

    def __init__(self, tensors: Iterable[Tensor], objects: Iterable[object]) -> None:
        self._seen: dict[int, object] = {}  # which also lets no id be given again
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._containers: list[tuple[dict | list | set, dict | list | set]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        for tensor in tensors:
            self._keep(tensor)
        for each in objects:
            self._keep(vars(each))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for container, content in self._containers:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)  # type: ignore[arg-type]
        for tensor, kept in self._tensors:
            tensor.copy_(kept)
        for generator, state in self._generators:
            generator.set_state(state)

    def _keep(self, value: object) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensors.append((value, value.detach().to("cpu", copy=True)))
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif isinstance(value, dict | list | set):
            self._containers.append((value, value.copy()))
            for each in value.values() if isinstance(value, dict) else value:
                self._keep(each)
        elif isinstance(value, tuple):
            for each in value:
                self._keep(each)
        elif isinstance(value, _FOLLOWED):
            self._keep(vars(value))
