"""The `prepare` section: functions that make the dataset before it is read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from modules.component import build
from modules.config_faults import dataset_paths
from modules.errors import ConfigError, explained
from modules.sections import Config
from modules.store import is_remote


def is_prepared(config: Config) -> bool:
    """Whether the dataset's directory is there, or those of a mixture's datasets.

    A remote one is asked for when it is opened.
    """
    paths = [path for _, path in dataset_paths(config.dataset.args)]
    return bool(paths) and all(is_remote(path) or Path(path).is_dir() for path in paths)


def prepare(config: Config) -> None:
    """Call the functions of `prepare`; each skips what an earlier run has finished.

    Raises:
        ConfigError: one of them refuses its arguments, or fails for some images; lists them.
    """
    for number, step in enumerate(config.prepare):
        result: Any = explained(f"prepare.{number}", partial(build, step.module, step.args))
        failed = getattr(result, "failed", ())
        if failed:
            listed = "".join(f"\n  {failure}" for failure in failed)
            raise ConfigError(f"prepare.{number}: {step.module} failed for:{listed}")
