"""The metadata of a run's files, put together from its config and what it works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from modules.dataset_contents import DatasetContents
from modules.dataset_facts import commonest_size, trigger_word
from modules.plan import Plan
from modules.receipt import make_receipt
from modules.run_identity import as_begun
from modules.run_metadata import RunMetadata
from modules.run_parts import RunParts
from modules.run_settings import network_rates, run_settings
from modules.sections import Config

if TYPE_CHECKING:
    from accelerate import Accelerator


def describe_run(
    config: Config,
    parts: RunParts,
    plan: Plan,
    accelerator: Accelerator,
    *,
    given: Mapping[str, str],
    contents: DatasetContents | None,
) -> RunMetadata:
    """Return what makes the metadata of a run's files; the files it names are read from now on.

    `given` are the person's own fields.
    """
    if contents is None:  # a process that writes nothing
        return RunMetadata()
    if config.save.metadata.content == "minimal":
        return RunMetadata(given=given, is_minimal=True)
    processes = accelerator.num_processes
    devices = f"{processes} x {_device_name(accelerator.device)}"
    receipt = make_receipt(as_begun(config), parts.dataset, contents, devices=devices)
    receipt.begin()
    return RunMetadata(
        settings=run_settings(config, plan, parts.objective, processes=processes),
        rates=network_rates(parts.groups, list(parts.networks)),
        spec=_known_spec(config, parts),
        given=given,
        gathered=receipt.metadata,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _known_spec(config: Config, parts: RunParts) -> dict[str, str]:
    """Fields of ModelSpec that the run says otherwise than its base model."""
    found = {}
    size = commonest_size(parts.dataset)
    if size is not None:
        found["resolution"] = f"{size[0]}x{size[1]}"
    if config.model.clip_skip is not None:
        found["encoder_layer"] = str(config.model.clip_skip)
    drawn = getattr(parts.objective, "timesteps", None)
    if drawn is not None and drawn != range(len(parts.objective.alphas_cumprod)):
        found["timestep_range"] = f"{drawn.start},{drawn.stop - 1}"
    if word := trigger_word(parts.dataset):
        found["trigger_phrase"] = word
    return {f"modelspec.{key}": value for key, value in found.items()}
