"""The entries of a mixture of datasets: what a config says of each, checked before any is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.component import accepts, argument_faults, build
from modules.hints import nearest
from modules.numbers import NonNegative
from modules.sections import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One dataset of a mixture."""

    module: str = DatasetConfig.module
    loss_weight: NonNegative = 1.0
    """Multiplies the loss of its images."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of `module`: what else stands in the entry, and what is common to all."""


_OWN = ("module", "loss_weight")
_PATH = f"{__name__}.{Entry.__name__}"


def read_entries(
    datasets: Sequence[Mapping[str, Any]], common: Mapping[str, Any] | None
) -> list[Entry]:
    """Make the entries of a config's values.

    Raises:
        ValueError: one is wrong; lists all faults.
    """
    faults = entry_faults("dataset", {"datasets": datasets, "common": common})
    if faults:
        raise ValueError("\n  ".join(["the entries of a mixture are wrong:", *faults]))
    entries = []
    for values in datasets:
        own, args = _split({**(common or {}), **values})
        entries.append(build(_PATH, own, args=args))
    return entries


def entry_faults(where: str, args: Mapping[str, Any]) -> list[str]:
    """What is wrong with the entries in a mixture's `args`, whose section is `where`."""
    if not args["datasets"]:
        return [f"{where}.args.datasets: is empty; list at least one, as `- path: datasets/cats`"]
    common, place = args.get("common") or {}, f"{where}.args"
    faults = []
    for number, values in enumerate(args["datasets"]):
        for key, fault in _find_faults({**common, **values}):
            is_common = key in common and key not in values
            name = "common" if is_common else f"datasets.{number}"
            faults.append(f"{place}.{name}.{fault}")
    return list(dict.fromkeys(faults))


def _find_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, key and fault) of an entry."""
    own, args = _split(values)
    lines = argument_faults("", _PATH, own)
    path = own.get("module", Entry.module)
    if not lines:
        for key in [key for key in args if not accepts(path, key)]:
            if key == "args":
                lines.append(".args.args: write the arguments beside `path`, without `args:`")
            elif near := nearest(key, _OWN):
                lines.append(f".args.{key}: {path} takes no argument {key!r}{near}")
            else:
                continue
            del args[key]
        lines += argument_faults("", path, args, supplied={"seed"})
    for line in lines:
        fault = line.removeprefix(".args").removeprefix(".")
        yield fault.partition(":")[0].partition(".")[0], fault


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry's own settings, and the arguments of its dataset."""
    own = {key: value for key, value in values.items() if key in _OWN}
    return own, {key: value for key, value in values.items() if key not in _OWN}
