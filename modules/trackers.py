"""Trackers (tensorboard, wandb) through accelerate; a missing one never stops a run."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import survived
from modules.files import write_atomically

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

logger = logging.getLogger(__name__)


def start_trackers(
    accelerator: Accelerator,
    loggers: Mapping[str, Mapping[str, Any] | None],
    *,
    directory: Path,
    run_name: str,
    settings: str,
    done: int = 0,
) -> None:
    """Start every logger of the config; settings are the resolved YAML, kept as text.

    Loggers are given as `name: {arguments of its init}`; `wandb` also takes `project`. A run that
    goes on after `done` steps goes on in the same curves.
    """
    if not loggers or not accelerator.is_main_process:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name, given in loggers.items():
        arguments = dict(given or {})
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        project = arguments.pop("project", "sd-trainer")
        if name == "wandb":
            same = {"id": _run_id(directory), "resume": "allow"}
            arguments = {"name": run_name, "dir": str(directory), **same, **arguments}
        elif name == "tensorboard" and done:
            arguments = {"purge_step": done + 1, **arguments}  # what was logged after the state
        try:
            tracker = _start(tracker_class, name, project, directory, arguments)
            tracker.store_init_configuration({"config": settings})
        except Exception as error:  # a tracker's own failure must not cost the run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("loggers.%s: not started (%s); metrics.jsonl has all", name, reason)
            continue
        accelerator.trackers.append(tracker)


def _run_id(directory: Path) -> str:
    """What wandb calls the run of a folder, from its beginning on."""
    file = directory / "wandb_id"
    if not file.is_file():
        write_atomically(file, secrets.token_hex(4) + "\n")
    return file.read_text(encoding="utf-8").strip()


def show_images(
    trackers: Iterable[Any],
    key: str,
    images: Sequence[Image],
    captions: Sequence[str],
    *,
    step: int,
) -> None:
    """Send pictures to the trackers that show pictures."""
    for tracker in trackers:
        with survived(f"loggers.{tracker.name}"):
            _show(tracker, key, images, captions, step=step)


def _show(
    tracker: Any, key: str, images: Sequence[Image], captions: Sequence[str], *, step: int
) -> None:
    """Log pictures to one tracker, with their captions where it shows any.

    Trackers want those of one key in one size: of several, each has a key with the size in it.
    """
    by_size: dict[tuple[int, int], list[tuple[Image, str]]] = {}
    for image, caption in zip(images, captions, strict=True):
        by_size.setdefault(image.size, []).append((image, caption))
    for (width, height), pairs in by_size.items():
        name = key if len(by_size) == 1 else f"{key}/{width}x{height}"
        if tracker.name == "wandb":
            import wandb

            pictures = [wandb.Image(image, caption=caption) for image, caption in pairs]
            tracker.log({name: pictures}, step=step)
        elif tracker.name == "tensorboard":
            import numpy as np

            stacked = np.stack([np.asarray(image) for image, _ in pairs])  # (N, H, W, 3)
            tracker.log_images({name: stacked}, step=step, dataformats="NHWC")


def _start(
    tracker_class: Any, name: str, project: str, directory: Path, arguments: dict[str, Any]
) -> Any:
    if name == "wandb":
        try:
            tracker = tracker_class(project, **arguments)
            tracker.start()
        except TypeError:  # an argument that it doesn't take: nor would it offline
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning("wandb: %s; logging offline to %s", reason, directory / "wandb")
            os.environ["WANDB_MODE"] = "offline"
            tracker = tracker_class(project, **{**arguments, "mode": "offline"})
            tracker.start()
        return tracker
    if tracker_class.requires_logging_directory:
        arguments["logging_dir"] = directory
    tracker = tracker_class(name, **arguments)
    tracker.start()
    return tracker
