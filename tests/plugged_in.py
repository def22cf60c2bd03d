"""Networks as a person would plug them in, for the tests."""

from __future__ import annotations

from torch import nn


class NeedsControl(nn.Module):
    """Asks for an extra that a plain dataset does not provide."""

    requires = ("control",)

    def attach(self, model) -> None:
        raise AssertionError("must be refused before it is attached")
