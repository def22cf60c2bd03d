"""The key names of the original sd-trainer, with the values that it took where a key was left out.

None is what was left out and means nothing; a section that is None is not there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from modules.schema import FaultList, build_section

Rank = int | Literal["dynamic"]

ORIGINAL_MODULES = {
    "dataset": "utils.dataset.BaseDataset",
    "save": "utils.save.Save",
    "network": "networks.lora.LoRANetwork",
}
"""The classes whose arguments are known, by section; those of any other are left as they are."""

_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
"""Words that are text to us, but truth values to YAML 1.1, which the original read."""


@dataclass(frozen=True, kw_only=True)
class Model:
    input_path: str | None = None
    output_name: str | None = None
    v2: Any = None
    v_prediction: bool | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetArgs:
    metadata: str | None = None
    path: str | None = None
    mask: bool | None = None
    pfg: bool | None = None
    control: bool | None = None
    prefix: str | None = None
    prompt: str | None = None
    shuffle: bool | None = None
    ucg: float | None = None


@dataclass(frozen=True, kw_only=True)
class Loader:
    module: str | None = None
    collate_fn: Any = None
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    module: str = ORIGINAL_MODULES["dataset"]
    args: DatasetArgs = field(default_factory=DatasetArgs)
    loader: Loader = field(default_factory=Loader)


@dataclass(frozen=True, kw_only=True)
class SaveArgs:
    wandb_name: str | None = None
    over_write: bool = True
    save_n_epochs: int | None = 1
    save_n_steps: int | None = None
    image_logs: Any = None
    num_images: int = 4
    resolution: str | int = "640,896"
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = 4545


@dataclass(frozen=True, kw_only=True)
class Save:
    module: str = ORIGINAL_MODULES["save"]
    args: SaveArgs = field(default_factory=SaveArgs)


@dataclass(frozen=True, kw_only=True)
class Train:
    train_unet: bool | None = None
    train_encoder: bool | None = None
    lr: str | float | None = None
    lr_scheduler: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    amp: bool | str | None = None
    gradient_checkpointing: bool | None = None
    use_xformers: bool | None = None
    seed: int | None = None
    tome_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Feature:
    minibatch_repeat: int = 1
    up_only: bool | None = None
    step_range: str | None = None
    test_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    module: str | None = None
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    rank: Rank = 4
    conv_rank: Rank | None = None
    alpha: float | None = 1.0
    multiplier: float | None = None
    module: Literal["loha"] | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    module: str = ORIGINAL_MODULES["network"]
    train: bool | None = None
    resume: str | None = None
    args: NetworkArgs = field(default_factory=NetworkArgs)


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    resume: str | None = None
    train: bool | None = None
    global_average_pooling: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PFGArgs:
    input_size: int | None = None
    cross_attention_dim: int | None = None
    num_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class PFG:
    resume: str | None = None
    train: bool | None = None
    args: PFGArgs = field(default_factory=PFGArgs)


@dataclass(frozen=True, kw_only=True)
class Legacy:
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    save: Save = field(default_factory=Save)
    train: Train = field(default_factory=Train)
    feature: Feature = field(default_factory=Feature)
    optimizer: Optimizer = field(default_factory=Optimizer)
    network: Network | None = None
    controlnet: ControlNet | None = None
    pfg: PFG | None = None


def read_keys(given: dict[str, Any], faults: FaultList) -> dict[str, Any]:
    """The values of a file by the original's keys, `train.lr`; what is wrong is noted in `faults`.

    Sections are there under their own names too. Of a class that isn't the original's own,
    `args` stands as it is.
    """
    values = copy.deepcopy(given)
    own = {}
    for name, module in ORIGINAL_MODULES.items():
        section = values.get(name)
        if isinstance(section, dict) and section.get("module", module) != module:
            own[f"{name}.args"] = section.pop("args", None) or {}
    _read_booleans(values, Legacy)
    found = dict(_flatten(build_section(Legacy, values, faults)))
    for key, args in own.items():
        found = {k: v for k, v in found.items() if not k.startswith(f"{key}.")} | {key: args}
    return found


def _flatten(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = section.items() if isinstance(section, Mapping) else vars(section).items()
    for name, value in items:
        if value is None and not prefix:
            continue
        yield prefix + name, value
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")


def _read_booleans(values: Any, section: type) -> None:
    """Make truth values of `yes` and `off`, in place, where one may stand."""
    for name, hint in get_type_hints(section).items():
        value = values.get(name) if isinstance(values, dict) else None
        kinds = get_args(hint) or (hint,)
        if isinstance(value, str) and bool in kinds and value.lower() in _BOOLEANS:
            values[name] = _BOOLEANS[value.lower()]
        for kind in kinds:
            if dataclasses.is_dataclass(kind):
                _read_booleans(value, kind)  # type: ignore[arg-type]
