"""The `prepare` section: functions that make the dataset before it is read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.component import accepts, build
from modules.config_faults import dataset_paths
from modules.errors import ConfigError, explained
from modules.meeting import meet
from modules.sections import ComponentConfig, Config
from modules.store import is_remote

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_prepared(config: Config) -> bool:
    """Whether the dataset's directory is there, or those of a mixture's datasets.

    A remote one is asked for when it is opened.
    """
    paths = [path for _, path in dataset_paths(config.dataset.args)]
    return bool(paths) and all(is_remote(path) or Path(path).is_dir() for path in paths)


def prepare(config: Config, accelerator: Accelerator) -> None:
    """Call the functions of `prepare`; each skips what an earlier run has finished.

    Where one works on the device and can be shared, each process first does its part of it.

    Raises:
        ConfigError: one of them refuses its arguments, or fails for some images; lists them.
    """
    for number, step in enumerate(config.prepare):
        if accelerator.num_processes > 1 and _is_shared(step):
            shard = f"{accelerator.process_index + 1}/{accelerator.num_processes}"
            explained(f"prepare.{number}", partial(build, step.module, step.args, shard=shard))
            meet(accelerator, f"its part of prepare.{number} ({step.module})")
        if accelerator.is_main_process:  # takes in the parts, and tries what failed in one again
            result: Any = explained(f"prepare.{number}", partial(build, step.module, step.args))
            failed = getattr(result, "failed", ())
            if failed:
                listed = "".join(f"\n  {failure}" for failure in failed)
                raise ConfigError(f"prepare.{number}: {step.module} failed for:{listed}")
        meet(accelerator, f"prepare.{number} ({step.module}), which process 0 ends")


def _is_shared(step: ComponentConfig) -> bool:
    """Whether processes, each with a device, are faster together."""
    can_be = accepts(step.module, "shard") and accepts(step.module, "device")
    return can_be and not {"shard", "device"} & step.args.keys()
