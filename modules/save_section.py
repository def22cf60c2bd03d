"""The section `save`, as those in `modules.sections`: what is written, where and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modules.numbers import Count, NonNegative


@dataclass(frozen=True, kw_only=True)
class MetadataConfig:
    content: Literal["full", "minimal"] = "full"
    """`full`: settings, tags of the captions, and the receipt; `minimal`: what programs need to
    load a file, and what is given here."""
    title: str | None = None
    """Name that programs show; null takes the file's."""
    author: str | None = None
    """Who made it."""
    description: str | None = None
    """What it is, in a few sentences."""
    license: str | None = None
    """Name, address or text of its license."""
    tags: list[str] = field(default_factory=list)
    """Words by which it may be found."""
    trigger_phrase: str | None = None
    """What a prompt needs for it to work; null takes the dataset's `trigger_word`."""
    usage_hint: str | None = None
    """How it is best used."""
    thumbnail: str | None = None
    """An image file that programs show; it is scaled to at most 256 pixels."""


OF_THE_RUN = ("name", "directory", "metadata", "state", "state_every_minutes")
"""Keys of the section that are not arguments of its saver."""


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
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    """What files say of themselves and of the run."""
    state: bool = True
    """Beside the weights keep what resuming needs: one state, of the newest save. false: only when
    the run ends early."""
    state_every_minutes: NonNegative = 15.0
    """Keep it at the latest after so many minutes; 0: with weights only."""
    module: str = "modules.savers.WeightsSaver"
    """Dotted path of the saver's class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of a saver of your own."""
