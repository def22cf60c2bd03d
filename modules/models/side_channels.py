"""What stands behind the noised sample in a denoiser's input: for most models nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from modules.batch import Batch, Sample


class SideChannels(Protocol):
    """Channels that are made of a batch and are neither noised nor predicted."""

    count: int
    requires: Sequence[str]  # keys of `extras` that drawing asks for, as networks do

    def pipeline(self, name: str) -> str:
        """The pipeline's class in diffusers, for the class `name` of the family."""
        ...

    def check(self, sample: Sample) -> None:
        """Raise ValueError if they can't be made of a dataset's sample."""
        ...

    def check_extras(self, extras: Mapping[str, Tensor]) -> None:
        """Raise ValueError if what drawing asks for can't be used."""
        ...

    def make(self, batch: Batch) -> Tensor | None:
        """The channels of a batch, (B, count, h, w)."""
        ...

    def complete(self, sample: Sample) -> Sample:
        """A dataset's sample with all that drawing asks for."""
        ...

    def shown(self, guides: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Side inputs of drawn images as they are to be looked at."""
        ...


class NoSideChannels:
    """The denoiser sees the sample alone."""

    count = 0
    requires: Sequence[str] = ()

    def pipeline(self, name: str) -> str:
        return name

    def check(self, sample: Sample) -> None:
        """Accept every sample."""

    def check_extras(self, extras: Mapping[str, Tensor]) -> None:
        """Accept them: nothing is asked for."""

    def make(self, batch: Batch) -> Tensor | None:
        return None

    def complete(self, sample: Sample) -> Sample:
        return sample

    def shown(self, guides: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return guides
