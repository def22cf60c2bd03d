"""The section `save`, as those in `modules.sections`: what is written, where and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modules.numbers import Count


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    name: str | None = None
    """Name of the run and its files; null takes the YAML's file name."""
    directory: str = "output"
    """Directory of all runs; a run makes its own folder in it."""
    every_epochs: Count | None = None
    """Epochs between two saves; the end of the run is always saved."""
    every_steps: Count | None = None
    """Optimizer steps between two saves."""
    keep_last: Count | None = None
    """How many earlier saves are kept; null keeps all."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Precision of the files."""
    format: Literal["diffusers", "single_file"] = "diffusers"
    """A trained base as a diffusers directory, or as one .safetensors in the original layout."""
    module: str = "modules.savers.WeightsSaver"
    """Dotted path of the saver's class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of a saver of your own."""
