"""A recipe of the quality table: a few settings over one YAML, and the task that it should do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.quality_tasks import POLAROIDS, Task, fill

BOTH = ("unet", "text_encoders")

_DROPOUT = {"caption_dropout": 0.1}
_COUNTS = {
    "count": "pictures to learn from",
    "plain_count": "plain ones",
    "odd_count": "odd ones",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, and how."""

    title: str
    task: Task = POLAROIDS
    steps: int = 400
    learning_rate: float = 2e-3
    batch_size: int = 8
    trainable: Sequence[str] = ()
    networks: Mapping[str, Any] = field(default_factory=dict)
    """In a frozen one's `resume`, {first} stands for the file of `first`."""
    dataset: Mapping[str, Any] = field(default_factory=lambda: _DROPOUT)
    further: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More of the YAML, by section; {prior} stands for the dataset of class images."""
    first: Recipe | None = None
    """Trained before, into one network that this one builds upon."""

    def sections(
        self,
        name: str,
        *,
        model: str,
        work: Path,
        seed: int,
        steps: int | None = None,
        first: str = "",
    ) -> dict[str, Any]:
        """Return the sections of a YAML whose files all lie in `work`, but for the file `first`."""
        steps = steps or self.steps
        sections: dict[str, Any] = {
            "model": {"path": model, "trainable": self.trainable},
            "prepare": self.task.prepare(model=model, seed=seed),
            "dataset": {"args": {"path": "{dataset}", **self.dataset}},
            "networks": self.networks,
            "train": {
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "max_train_steps": steps,
                "seed": seed,
            },
            "lr_scheduler": {"name": "cosine", "warmup_steps": min(20, steps)},
            "save": {"name": name, "directory": str(work / "runs")},
        }
        for section, values in self.further.items():
            sections[section] = {**sections.get(section, {}), **values}
        folders = self.task.folders(work / "data" / f"{self.task.name}-{seed}")
        return fill(sections, {**folders, "{first}": first})

    def settings(self) -> str:
        """Say in one line what the recipe sets."""
        trained = [f"`{path}`" for path in self.trainable]
        trained += [_network(network) for network in self.networks.values()]
        rates = f"learning rate {self.learning_rate:g}, batch size {self.batch_size}"
        drawn = self.task.draw["args"]
        pictures = [f"{drawn[key]} {word}" for key, word in _COUNTS.items() if drawn.get(key)]
        further = fill(self.further, {"{prior}": "class images"})
        sections = [f"`{name}`: {_listed(values)}" for name, values in further.items()]
        parts = [" with ".join(trained), rates, " and ".join(pictures), _listed(self.dataset)]
        return "; ".join(part for part in [*parts, *sections] if part)


def lora(*, kind: str = "lora.LoRA", **args: Any) -> dict[str, Any]:
    """Return a network of UNet and text encoder, of rank 16 if `args` don't say other things."""
    return {"module": f"networks.{kind}", "args": {"rank": 16, "targets": BOTH, **args}}


def locon(**args: Any) -> dict[str, Any]:
    """Return a LoCon: a LoRA of convolutions too."""
    return lora(**{"conv_rank": 16, **args})


def _network(section: Mapping[str, Any]) -> str:
    others = {key: value for key, value in section.items() if key not in ("module", "args")}
    if "resume" in others:
        others["resume"] = "what was trained first"
    listed = _listed({**section["args"], **others})
    return f"`{section['module']}`" + (f" ({listed})" if listed else "")


def _listed(values: Mapping[str, Any]) -> str:
    """Write `rank 16, targets [unet]` for the values of a YAML."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
