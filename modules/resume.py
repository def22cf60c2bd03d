"""Which run goes on, and whether it is still the same run."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.checkpoint import TrainState, read_progress
from modules.errors import ConfigError, explained
from modules.models.patterns import matches
from modules.sections import Config
from modules.state_folder import find_states

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)

AUTO = "auto"
FINISHED = "finished.json"
"""What a run writes into its folder when nothing is left to do."""

_FREE = (
    "save",
    "sample",
    "loggers",
    "prepare",
    "train.resume",
    "train.accept_changes",
    "validation.every_epochs",
    "validation.every_steps",
    "validation.keep_best",
    "train.log_every",
    "train.max_nonfinite_steps",
    "dataset.num_workers",
    "prior.num_workers",
)
"""Keys that may change at will: they have no effect on the trained weights."""


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


def identify(
    config: Config, dataset: Any, *, held_out: str, steps: int, processes: int
) -> dict[str, Any]:
    """What makes a run the same run, as its state holds it."""
    return {
        "config": asdict(as_begun(config)),
        "dataset.images": describe_images(dataset),
        "validation.images": held_out,
        "max_train_steps": steps,
        "processes": processes,
    }


def as_begun(config: Config) -> Config:
    """The config of a run without what it says of resuming."""
    return replace(config, train=replace(config.train, resume=None, accept_changes=[]))


def describe_images(dataset: Any) -> str:
    """How many images a dataset has, and a hash of their names, in the order of an epoch."""
    digest = hashlib.sha256()
    for name in getattr(dataset, "names", ()):
        digest.update(f"{name}\n".encode())
    for bucket in dataset.buckets:
        digest.update(np.asarray(bucket, dtype=np.int64).tobytes() + b".")
    return f"{len(dataset)} images ({digest.hexdigest()[:12]})"


def check_config(state: Path, config: Config) -> bool:
    """Check that a config asks for what the run of a state was begun with; tell if all is equal.

    Raises:
        ConfigError: lists what is different, with both values, and how to accept it.
    """
    before = explained("train.resume", lambda: read_progress(state))
    changes = dict(_config_changes(before, config))
    _refuse(state, config, changes)
    return not changes


def check_identity(state: Path, config: Config, identity: Mapping[str, Any]) -> None:
    """Check the same of what a config does not say: the dataset, processes, number of steps.

    Raises:
        ConfigError: as `check_config` does.
    """
    before = read_progress(state)
    known = dict(_config_changes(before, config))
    changes: dict[str, tuple[Any, Any]] = {}
    for key in ("dataset.images", "validation.images", "processes", "max_train_steps"):
        depends = key in ("validation.images", "max_train_steps")
        follows = depends and bool(known or changes)  # from what was accepted
        if before[key] != identity[key] and not follows:
            changes[key] = (before[key], identity[key])
    _refuse(state, config, changes)
    for key, (old, new) in {**known, **changes}.items():
        logger.info("resumed with a change: %s was %r, is %r", key, old, new)


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


def _config_changes(before: Mapping[str, Any], config: Config) -> Iterator[tuple[str, tuple]]:
    for key, values in _differences(before["config"], asdict(as_begun(config))):
        if not any(_is_part(key, free) for free in _FREE):
            yield key, values


def _refuse(state: Path, config: Config, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise if there are changes that `train.accept_changes` does not name."""
    accepted = config.train.accept_changes
    refused = {k: v for k, v in changes.items() if not any(_is_part(k, each) for each in accepted)}
    if refused:
        keys = ",".join([*accepted, *refused])
        lines = [f"  {key}: {old!r} then, {new!r} now" for key, (old, new) in refused.items()]
        raise ConfigError(
            "\n".join(
                [
                    f"train.resume: {state} is of a run with other settings:",
                    *lines,
                    "set them back, or go on with the new ones: "
                    + shlex.quote(f"train.accept_changes=[{keys}]"),
                ]
            )
        )


def _is_part(key: str, pattern: str) -> bool:
    return key == pattern or key.startswith(f"{pattern}.") or matches(key, pattern)


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Values of two configs that differ, by dotted key; of lists and what is absent as a whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    elif _plain(before) != _plain(now):
        yield path, (_plain(before), _plain(now))


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
