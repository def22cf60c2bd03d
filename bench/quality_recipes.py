"""Recipes of the quality table: a few settings over one YAML, and the task that they should do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.quality_data import FEATURE_COUNT
from bench.quality_tasks import (
    FEATURES,
    GUIDES,
    MARKED,
    MASKED,
    POLAROIDS,
    POLAROIDS_AMONG_PLAIN,
    Task,
)

_PICTURES = {"count": "pictures to learn from", "plain_count": "plain ones"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, and how."""

    title: str
    task: Task
    steps: int
    learning_rate: float
    batch_size: int = 8
    trainable: Sequence[str] = ()
    networks: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)

    def sections(
        self, name: str, *, model: str, work: Path, seed: int, steps: int | None = None
    ) -> dict[str, Any]:
        """Return the sections of a YAML whose files all lie in `work`."""
        folder = work / "data" / f"{self.task.name}-{seed}"
        steps = steps or self.steps
        return {
            "model": {"path": model, "trainable": list(self.trainable)},
            "prepare": self.task.prepare(folder, model=model, seed=seed),
            "dataset": {"args": {"path": str(folder / "dataset"), **self.dataset}},
            "networks": dict(self.networks),
            "train": {
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "max_train_steps": steps,
                "seed": seed,
            },
            "lr_scheduler": {"name": "cosine", "warmup_steps": min(20, steps)},
            "save": {"name": name, "directory": str(work / "runs")},
        }

    def settings(self) -> str:
        """Say in one line what the recipe sets."""
        trained = [f"`{path}`" for path in self.trainable]
        for network in self.networks.values():
            args = _listed(network["args"])
            trained.append(f"`{network['module']}`" + (f" ({args})" if args else ""))
        rates = f"learning rate {self.learning_rate:g}, batch size {self.batch_size}"
        drawn = self.task.draw["args"]
        pictures = [f"{drawn[key]} {word}" for key, word in _PICTURES.items() if key in drawn]
        parts = [" with ".join(trained), rates, " and ".join(pictures), _listed(self.dataset)]
        return "; ".join(part for part in parts if part)


def _listed(values: Mapping[str, Any]) -> str:
    """Write `rank 16, targets [unet]` for the values of a YAML."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return '""' if value == "" else str(value)


_BOTH = ["unet", "text_encoders"]
_DROPOUT = {"caption_dropout": 0.1}
_LOCON = {
    "module": "networks.lora.LoRA",
    "args": {"rank": 16, "conv_rank": 16, "targets": _BOTH},
}

RECIPES: dict[str, Recipe] = {
    "lora": Recipe(
        title="LoRA",
        task=POLAROIDS,
        steps=400,
        learning_rate=2e-3,
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 16, "targets": _BOTH}}},
        dataset=_DROPOUT,
    ),
    "locon": Recipe(
        title="LoCon",
        task=POLAROIDS,
        steps=400,
        learning_rate=2e-3,
        networks={"locon": _LOCON},
        dataset=_DROPOUT,
    ),
    "loha": Recipe(
        title="LoHa",
        task=POLAROIDS,
        steps=400,
        learning_rate=1e-3,
        networks={
            "loha": {
                "module": "networks.loha.LoHa",
                "args": {"rank": 8, "conv_rank": 8, "targets": _BOTH},
            }
        },
        dataset=_DROPOUT,
    ),
    "full": Recipe(
        title="full fine-tuning",
        task=POLAROIDS,
        steps=400,
        learning_rate=3e-4,
        trainable=_BOTH,
        dataset=_DROPOUT,
    ),
    "up_blocks": Recipe(
        title="up_blocks only",
        task=POLAROIDS_AMONG_PLAIN,
        steps=1000,
        learning_rate=4e-4,
        trainable=["unet.up_blocks"],
        dataset=_DROPOUT,
    ),
    "lora_up_blocks": Recipe(
        title="LoRA on up_blocks only",
        task=POLAROIDS_AMONG_PLAIN,
        steps=1000,
        learning_rate=2e-3,
        networks={
            "lora": {
                "module": "networks.lora.LoRA",
                "args": {"rank": 16, "conv_rank": 16, "targets": ["unet.up_blocks"]},
            }
        },
        dataset=_DROPOUT,
    ),
    "pfg": Recipe(
        title="PFG with a UNet LoRA, empty captions",
        task=FEATURES,
        steps=800,
        learning_rate=2e-3,
        batch_size=16,
        networks={
            "pfg": {
                "module": "networks.pfg.PFG",
                "args": {"input_size": FEATURE_COUNT, "num_tokens": 4, "dropout": 0.1},
            },
            "lora": {
                "module": "networks.lora.LoRA",
                "args": {"rank": 16, "conv_rank": 16, "targets": ["unet"]},
            },
        },
        dataset={"prompt": "", "extras": {"pfg": "npz"}},
    ),
    "controlnet": Recipe(
        title="ControlNet",
        task=GUIDES,
        steps=800,
        learning_rate=1e-3,
        batch_size=16,
        networks={"controlnet": {"module": "networks.controlnet.ControlNet", "args": {}}},
        dataset={**_DROPOUT, "extras": {"control": "image"}},
    ),
    "masked": Recipe(
        title="LoCon, mark masked out",
        task=MASKED,
        steps=400,
        learning_rate=2e-3,
        networks={"locon": _LOCON},
        dataset={**_DROPOUT, "mask": True},
    ),
    "unmasked": Recipe(
        title="LoCon, mark not masked",
        task=MARKED,
        steps=400,
        learning_rate=2e-3,
        networks={"locon": _LOCON},
        dataset=_DROPOUT,
    ),
}
