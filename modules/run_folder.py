"""One run, one folder: `output/<name>`, and the next free name when that exists."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def create_run_folder(directory: Path, name: str) -> Path:
    """Make a folder that no earlier run has used: `name`, `name-2`, `name-3`...

    Raises:
        ValueError: the directory can't be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"save.directory: {directory} cannot be made: {error.strerror}") from error
    number = 1
    while True:
        folder = directory / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            message = f"save.directory: no folder can be made in {directory}: {error.strerror}"
            raise ValueError(message) from error
        else:
            if number > 1:
                logger.info("%s holds an earlier run and stays as it is", directory / name)
            return folder


def next_run_folder(directory: Path, name: str) -> Path:
    """The folder that `create_run_folder` would make now."""
    folder, number = directory / name, 1
    while folder.exists():
        number += 1
        folder = directory / f"{name}-{number}"
    return folder


def share_run_folder(directory: Path, name: str, accelerator: Accelerator) -> Path:
    """Let rank 0 make the run's folder, and all know it."""
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None]
    if accelerator.is_main_process:
        made = [str(create_run_folder(directory, name))]
    return Path(broadcast_object_list(made)[0])
