"""Which run goes on, and how."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from modules.checkpoint import TrainState, read_progress
from modules.errors import ConfigError
from modules.sections import Config
from modules.state_folder import find_states

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)

AUTO = "auto"
FINISHED = "finished.json"
"""What a run writes into its folder when nothing is left to do."""


def find_state(config: Config) -> Path | None:
    """The state that `train.resume` names; None begins a new run.

    `auto` takes the newest folder of this run's name that has a state.

    Raises:
        ConfigError: a directory is named that holds no state.
    """
    wanted = config.train.resume
    if wanted is None:
        return None
    if wanted != AUTO:
        path = Path(wanted)
        states = find_states(path)
        if not states and (path / "progress.json").is_file():
            states = [path]
        if not states:
            raise ConfigError(
                f"train.resume: {path} holds no state of a run; name a folder such as "
                "output/<name>, or `auto` for the newest of this name"
            )
        return states[0]
    for folder in run_folders(Path(config.save.directory), str(config.save.name)):
        if states := find_states(folder):
            return states[0]
    return None


def run_folders(directory: Path, name: str) -> list[Path]:
    """The folders of all runs of a name, the newest first."""
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9]\d+))?")
    found = []
    for entry in directory.iterdir() if directory.is_dir() else ():
        match = pattern.fullmatch(entry.name)
        if match and entry.is_dir():
            found.append((int(match[1] or 1), entry))
    return [folder for _, folder in sorted(found, reverse=True)]


def go_on(trainer: Trainer, state: Path) -> None:
    """Bring a fresh trainer to a state.

    Raises:
        ValueError: the state can't be read, or is of other networks.
    """
    try:
        TrainState.load(state).apply(trainer)
    except ValueError as error:
        raise ValueError(f"{state}: {error}") from error
    (trainer.directory / FINISHED).unlink(missing_ok=True)
    logger.info("going on after step %d of %d", trainer.step, trainer.max_train_steps)


def is_finished(state: Path) -> bool:
    """Whether the run of a state has done its last step, and all that comes behind it."""
    path = state.parent / FINISHED
    if not path.is_file():
        return False
    return read_progress(state)["step"] >= json.loads(path.read_text(encoding="utf-8"))["steps"]


def command(directory: Path) -> str:
    """What a person types to let the run of a folder go on."""
    config = shlex.quote(str(directory / "config.yaml"))
    return f"python main.py {config} {shlex.quote(f'train.resume={directory}')}"
