"""What makes a run the same run: what of it may change when it goes on, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.checkpoint import read_progress
from modules.dataset_contents import DatasetContents, describe_total
from modules.errors import ConfigError, explained
from modules.manifest import FILE as MANIFEST
from modules.masking import mask_secrets
from modules.models.patterns import matches
from modules.sections import Config

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FILES = "dataset.files"
_MOMENT = 5.0  # seconds

_FREE = (
    "save",
    "sample",
    "model.offline",
    "model.offload_blocks",
    "loggers",
    "prepare",
    "train.resume",
    "train.accept_changes",
    "validation.every_epochs",
    "validation.every_steps",
    "validation.keep_best",
    "train.log_every",
    "train.rehearse",
    "train.max_nonfinite_steps",
    "dataset.num_workers",
    "prior.num_workers",
)
"""Keys that may change at will: they have no effect on the trained weights."""


@dataclass(frozen=True)
class Identity:
    """What makes a run the same run, as its state holds it.

    Args:
        told: what is known at its start.
        contents: the files of its datasets, which are hashed meanwhile.
    """

    told: Mapping[str, Any]
    contents: DatasetContents | None = None

    def __call__(self) -> dict[str, Any]:
        """Return what is known by now; waits a moment for the files' hashes."""
        if self.contents is None:
            return dict(self.told)
        files = describe_total(self.contents.total(_MOMENT))
        self.contents.leave_manifest()
        return {**self.told, FILES: files}


def identify(
    config: Config, dataset: Any, *, held_out: str, steps: int, processes: int
) -> dict[str, Any]:
    """What makes a run the same run, but for its files."""
    return {
        "config": mask_secrets(asdict(as_begun(config))),
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


def check_identity(
    state: Path, config: Config, identity: Identity, accelerator: Accelerator
) -> None:
    """Check the same of what a config does not say: the dataset, processes, number of steps.

    All files of the datasets are hashed for it; of those that are known from before only size and
    time are looked at.

    Raises:
        ConfigError: as `check_config` does.
    """
    before = read_progress(state)
    known = dict(_config_changes(before, config))
    changes: dict[str, tuple[Any, Any]] = {}
    for key in ("dataset.images", "validation.images", "processes", "max_train_steps"):
        depends = key in ("validation.images", "max_train_steps")
        follows = depends and bool(known or changes)  # from what was accepted
        if before[key] != identity.told[key] and not follows:
            changes[key] = (before[key], identity.told[key])
    files, listed = _compare_files(state, identity.contents, accelerator)
    if files is not None and "dataset.images" not in changes:
        changes[FILES] = files
    _refuse(state, config, changes, {FILES: listed})
    for key, (old, new) in {**known, **changes}.items():
        logger.info("resumed with a change: %s was %r, is %r", key, old, new)


def _compare_files(
    state: Path, contents: DatasetContents | None, accelerator: Accelerator
) -> tuple[tuple[str, str] | None, str]:
    """Return the files of a state and those of now if they differ, and which do.

    The first process looks at them, and tells the others.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, ""]
    if contents is not None:
        then, now = read_progress(state).get(FILES), describe_total(contents.total())
        if then is None and now is not None:
            logger.warning(
                "the state was kept before the dataset's files were hashed: whether their contents "
                "are the same is not known, their names are"
            )
        elif then != now:
            found = [(then, now), contents.changes_since(state.parent / MANIFEST)]
    files, listed = broadcast_object_list(found)
    return files, listed


def _config_changes(before: Mapping[str, Any], config: Config) -> Iterator[tuple[str, tuple]]:
    begun = _completed(before["config"], asdict(Config()))
    for key, values in _differences(begun, mask_secrets(asdict(as_begun(config)))):
        if not any(_is_part(key, free) for free in _FREE):
            yield key, values


def _completed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run, with the defaults of keys that were not known when it was begun."""
    found = {**defaults, **config}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(found[key], Mapping):
            found[key] = _completed(found[key], value)
    return found


def _refuse(
    state: Path,
    config: Config,
    changes: Mapping[str, tuple[Any, Any]],
    details: Mapping[str, str] | None = None,
) -> None:
    """Raise if there are changes that `train.accept_changes` does not name."""
    accepted = config.train.accept_changes
    refused = {k: v for k, v in changes.items() if not any(_is_part(k, each) for each in accepted)}
    if refused:
        keys = ",".join([*accepted, *refused])
        lines = []
        for key, (old, new) in refused.items():
            detail = (details or {}).get(key)
            lines.append(f"  {key}: {old!r} then, {new!r} now" + (f" ({detail})" if detail else ""))
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
