"""What is kept of a VAE's posterior."""

from __future__ import annotations

from typing import Literal, get_args

Posterior = Literal["moments", "sample", "mode"]
"""Mean and log-variance, one sample, or the mean alone."""

POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
