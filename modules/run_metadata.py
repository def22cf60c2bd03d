"""What the files of a run say of it: the `ss_*` of kohya-ss/sd-scripts, ModelSpec, our receipt."""

from __future__ import annotations

import base64
import io
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.models.model_spec import model_spec
from modules.save_section import MetadataConfig

if TYPE_CHECKING:
    from modules.protocols import Run

_THUMBNAIL = 256  # pixels, as ModelSpec recommends


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """Makes the metadata of each file that a run writes; every value is text."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the whole run."""
    rates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Learning rates by network; "" is the base."""
    spec: Mapping[str, str] = field(default_factory=dict)
    """Fields of ModelSpec that the run knows better than its model."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Fields of ModelSpec that the person gave."""
    gathered: Callable[[], Mapping[str, str]] = field(default=dict)
    """What is made beside training, of the data and the weights that it began with."""
    is_minimal: bool = False
    """Only what programs need to load a file, and what was given."""
    started_at: float = field(default_factory=time.time)
    session: int = field(default_factory=lambda: secrets.randbelow(2**32))

    def of_network(self, run: Run, name: str, *, title: str) -> dict[str, str]:
        """Return the metadata of a network's file that is called `title`."""
        network: Any = run.networks[name]
        own = network.describe(run.model) if hasattr(network, "describe") else {}
        kind = getattr(network, "file_kind", "")
        spec = model_spec(run.model, title=title, kind=kind) if kind else {}
        told = {**own, "ss_output_name": title}
        return self._complete(run, told, spec, self.rates.get(name, {}))

    def of_base(self, run: Run, *, title: str) -> dict[str, str]:
        """Return the metadata of a trained base model, or of its VAE."""
        spec = model_spec(run.model, title=title) or {"modelspec.title": title}
        return self._complete(run, {}, spec, self.rates.get("", {}))

    def _complete(
        self,
        run: Run,
        own: Mapping[str, str],
        spec: Mapping[str, str],
        rates: Mapping[str, str],
    ) -> dict[str, str]:
        if self.is_minimal:
            return {**own, **spec, **self.given}
        now = time.time()
        progress = {
            "ss_steps": str(run.step),
            "ss_epoch": str(run.epoch),
            "ss_training_started_at": str(self.started_at),
            "ss_training_finished_at": str(now),
            "ss_session_id": str(self.session),
        }
        date = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        if "modelspec.sai_model_spec" in spec:
            spec = {**spec, **self.spec, "modelspec.date": date}
        known = {**self.settings, **self.gathered()}
        return {**known, **own, **rates, **progress, **spec, **self.given}


def person_spec(section: MetadataConfig) -> dict[str, str]:
    """Return the fields of ModelSpec that a person gave.

    Raises:
        ValueError: the thumbnail can't be read.
    """
    names = ("title", "author", "description", "license", "trigger_phrase", "usage_hint")
    found = {f"modelspec.{name}": getattr(section, name) for name in names}
    found["modelspec.tags"] = ", ".join(section.tags)
    if section.thumbnail is not None:
        found["modelspec.thumbnail"] = _data_url(Path(section.thumbnail))
    return {key: value for key, value in found.items() if value}


def _data_url(path: Path) -> str:
    """A small JPEG of an image file as a data URL."""
    from modules.images import open_image

    image = open_image(path)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
