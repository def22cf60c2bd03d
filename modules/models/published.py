"""The published models of each kind of single file without weights: their modules' names and sizes.

Nothing is read or downloaded; configs and CLIP's vocabulary come with the repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modules.component import resolve
from modules.models import FAMILIES
from modules.models.base import DiffusionModel
from modules.models.clip_tokenizer import make_tokenizer
from modules.models.filling import make_module
from modules.models.layouts import LAYOUTS, Layout, published_config


def published_model(name: str) -> DiffusionModel:
    """The model of the kind `sd1`, `sd2` or `sdxl`; every parameter is on `meta`."""
    layout = LAYOUTS[name]
    family: type[DiffusionModel] = resolve(FAMILIES[layout.pipeline])
    return family.from_checkpoint(_Published(layout), vae=None, weights=False)


class _Published:
    """A checkpoint of configs alone."""

    prediction_source: str | None = None

    def __init__(self, layout: Layout):
        self.path = f"the published {layout.name}"
        self.index: Mapping[str, Any] = {"_class_name": layout.pipeline, **layout.switches}
        self._layout = layout

    def check(self, names: Sequence[str]) -> None:
        """Do nothing: every piece is there."""

    def load(self, name: str, cls: Any, *, weights: bool = True) -> Any:
        return make_module(cls, self.config(name), weights=False)

    def load_tokenizer(self, name: str, cls: Any) -> Any:
        return make_tokenizer(cls, self.config(name))

    def config(self, name: str) -> dict[str, Any]:
        return published_config(self._layout, name)

    def scheduler_config(self) -> dict[str, Any]:
        return self.config("scheduler")
