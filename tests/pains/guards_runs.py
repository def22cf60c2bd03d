"""What prevents the pains of runs: their end and going on, their samples, their processes."""

from __future__ import annotations

from pains.guards import Guard

GUARDS: list[Guard] = []
