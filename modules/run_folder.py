"""One run, one folder: `output/<name>`, and the next free name when that exists."""

from __future__ import annotations

import logging
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator

    from modules.optimizer import ParameterGroup
    from modules.sections import Config

from modules.files import remove_leftovers

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


def share_run_folder(
    directory: Path, name: str, accelerator: Accelerator, *, resumed: Path | None = None
) -> Path:
    """Let rank 0 make the run's folder, and all know it; `resumed` is that of a run that goes on.

    Raises:
        ValueError: the directory can't be written to.
    """
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None]
    if accelerator.is_main_process:
        if resumed is not None:
            check_writable(resumed)
            remove_leftovers(resumed)
        made = [str(resumed or create_run_folder(directory, name))]
    return Path(broadcast_object_list(made)[0])


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder.

    Raises:
        ValueError: they can't.
    """
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        message = f"save.directory: nothing can be written in {folder}: {error.strerror}"
        raise ValueError(message) from error


def check_space(folder: Path, *, needed: int) -> None:
    """Check that a disk has room for what a run writes at once, in bytes.

    Raises:
        ValueError: it has not.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"save.directory: {folder} has {free / 1e9:.2f} GB free, and the first save needs "
            f"{needed / 1e9:.2f} GB; free some, or name a directory on another disk"
        )


def first_save(groups: Sequence[ParameterGroup], config: Config) -> int:
    """Bytes that the first save of a run writes: weights, and the state with its optimizer's.

    An optimizer is counted as Adam is, with two numbers for each weight; files on the way to their
    name and those they take the place of lie there at the same time.
    """
    weights = sum(group.count for group in groups)
    size = {"fp32": 4, "fp16": 2, "bf16": 2}[config.save.dtype]
    kept = 4 * weights * (3 if config.ema is None else 4) if config.save.state else 0
    files = 2 if config.validation is not None and config.validation.keep_best else 1
    return weights * size * files + kept
