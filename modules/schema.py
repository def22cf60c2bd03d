"""Values from a file -> annotated Python values; every mismatch becomes a fault with its key.

Understands what the config's dataclasses and the components' signatures are annotated with:
bool, int, float, str, Path, Literal, list, tuple, dict, unions, None, dataclasses, and numbers with
bounds as `Annotated[int, Minimum(1)]`. Anything else is passed through unchecked.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from modules.hints import key_hint, nearest
from modules.masking import MASK
from modules.value_words import advice, describe, show

INVALID = object()

_LISTS = (list, tuple, Sequence, Iterable)
_MAPPINGS = (dict, Mapping)


class FaultList(Protocol):
    """Where faults are noted."""

    def fault(self, path: tuple[str, ...], message: str) -> None: ...


@dataclass(frozen=True)
class Minimum:
    """A bound of a number in an annotation."""

    low: float

    def problem(self, number: float) -> str | None:
        return None if number >= self.low else f"must be at least {self.low}"


@dataclass(frozen=True)
class Within:
    """Both bounds of a number in an annotation, included."""

    low: float
    high: float

    def problem(self, number: float) -> str | None:
        within = self.low <= number <= self.high
        return None if within else f"must be from {self.low} to {self.high}"


def build_section(cls: type, values: Any, faults: FaultList, path: tuple[str, ...] = ()) -> Any:
    """Make the dataclass `cls` of a mapping; a faulty key is noted and keeps its default."""
    if not path:
        faults = _SchemaFaults(faults, cls)
    if values is None:
        values = {}  # `save:` with nothing under it
    if not isinstance(values, Mapping):
        faults.fault(path, f"{show(values)} is not a section with keys of its own")
        values = {}
    hints = get_type_hints(cls, include_extras=True)
    root = faults.root if isinstance(faults, _SchemaFaults) else cls
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            faults.fault((*path, key), f"no such key{key_hint(key, path, cls, root)}")
            continue
        converted = convert(value, hints[key], faults, (*path, key))
        if converted is not INVALID:
            arguments[key] = converted
    for field in dataclasses.fields(cls):
        if field.default is MISSING and field.name not in values:
            faults.fault((*path, field.name), "is missing; it has no default")
    for name, hint in hints.items():  # a section left out may still have required keys
        if name not in values and dataclasses.is_dataclass(hint):
            arguments[name] = build_section(hint, {}, faults, (*path, name))  # type: ignore[arg-type]
    return cls(**arguments)


def convert(value: Any, hint: Any, faults: FaultList, path: tuple[str, ...]) -> Any:
    """Return `value` as `hint` wants it, or INVALID after noting a fault at `path`."""
    if value == MISSING and isinstance(value, str):
        faults.fault(path, "??? stands for a value of yours; set it here or on the command line")
        return INVALID
    if isinstance(value, str) and (value == MASK or f"://{MASK}@" in value):
        faults.fault(path, f"{MASK} stands for a secret that is kept out of files; set it again")
        return INVALID
    if hint is Any or isinstance(hint, str):
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        items = inner.items() if isinstance(inner, Mapping) else ()
        parts = [convert(item, Any, faults, (*path, str(key))) for key, item in items]
        return INVALID if any(part is INVALID for part in parts) else value
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        return _bounded(convert(value, arguments[0], faults, path), arguments[1:], faults, path)
    if origin in (Union, types.UnionType):
        return _one_of_several(value, arguments, faults, path)
    if origin is Literal:
        return _choice(value, arguments, faults, path)
    if dataclasses.is_dataclass(hint):
        return build_section(hint, value, faults, path)  # type: ignore[arg-type]
    if origin in _LISTS:
        return _sequence(value, origin, arguments, faults, path)
    if origin in _MAPPINGS:
        return _mapping(value, arguments, faults, path)
    return _scalar(value, hint, faults, path)


class _SchemaFaults:
    """Passes faults on and knows the whole schema, for hints at keys in the wrong section."""

    def __init__(self, faults: FaultList, root: type):
        self.fault = faults.fault
        self.root = root


class _Trial:
    """Notes whether one attempt of several had a fault."""

    def __init__(self) -> None:
        self.failed = False

    def fault(self, path: tuple[str, ...], message: str) -> None:
        self.failed = True


def _bounded(value: Any, bounds: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if value is INVALID:
        return INVALID
    for problem in (bound.problem(value) for bound in bounds if hasattr(bound, "problem")):
        if problem:
            faults.fault(path, f"{show(value)} is out of range; it {problem}")
            return INVALID
    return value


def _one_of_several(value: Any, hints: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not type(None))
    fitting = [hint for hint in hints if _is_of_kind(value, hint)]
    fitting.sort(key=lambda hint: type(value) is not hint)  # 3 stays 3 where float | int is wanted
    if len(hints) == 1 or len(fitting) == 1:
        return convert(value, (fitting or hints)[0], faults, path)
    for hint in fitting or hints:  # 5 is no text, but can be written as one
        trial = _Trial()
        converted = convert(value, hint, trial, path)
        if not trial.failed:
            return converted
    _mismatch(value, hints, faults, path)
    return INVALID


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Whether `value` may become a `hint`, its items, size and bounds left aside."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        return _is_of_kind(value, arguments[0])
    if origin is Literal:
        return any(type(choice) is type(value) for choice in arguments)
    if origin in _LISTS:
        return isinstance(value, list | tuple)
    if origin in _MAPPINGS or dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if hint in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    return isinstance(value, bool) if hint is bool else True


def _choice(value: Any, choices: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    near = nearest(str(value), [str(choice) for choice in choices])
    listed = ", ".join(show(choice) for choice in choices)
    faults.fault(path, f"{show(value)} is not one of {listed}{near}")
    return INVALID


def _sequence(
    value: Any, origin: Any, arguments: tuple, faults: FaultList, path: tuple[str, ...]
) -> Any:
    if value is None:
        _mismatch(value, (list,), faults, path)
        return INVALID
    if not isinstance(value, list | tuple):
        what_to_do = "" if isinstance(value, Mapping) else f"; write [{show(value)}]"
        faults.fault(path, f"{show(value)} is not a list{what_to_do}")
        return INVALID
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            faults.fault(path, f"has {len(value)} values, {len(arguments)} are wanted")
            return INVALID
        hints = arguments
    else:
        hints = (arguments[0] if arguments else Any,) * len(value)
    items = [
        convert(item, hint, faults, (*path, str(position)))
        for position, (item, hint) in enumerate(zip(value, hints, strict=True))
    ]
    if any(item is INVALID for item in items):
        return INVALID
    return tuple(items) if origin is tuple else items


def _mapping(value: Any, arguments: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _mismatch(value, (dict,), faults, path)
        return INVALID
    hint = arguments[1] if arguments else Any
    items = {str(k): convert(v, hint, faults, (*path, str(k))) for k, v in value.items()}
    return INVALID if any(item is INVALID for item in items.values()) else items


def _scalar(value: Any, hint: Any, faults: FaultList, path: tuple[str, ...]) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint not in (bool, int, float, str, type(None)):
        return value  # a type of a package's own: the class itself will judge
    if hint in (int, float) and _is_of_kind(value, hint):
        problem = None
        if not (-(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)):
            problem = "is too large" if isinstance(value, int) else "is not a finite number"
        elif hint is float or value == int(value):
            return hint(value)
        faults.fault(path, f"{show(value)} {problem or 'is not a whole number'}")
        return INVALID
    if type(value) is hint:
        return value
    if hint is str and type(value) is int:
        return str(value)
    _mismatch(value, (hint,), faults, path)
    return INVALID


def _mismatch(value: Any, hints: tuple, faults: FaultList, path: tuple[str, ...]) -> None:
    wanted = " or ".join(describe(hint) for hint in hints)
    if value is None:
        faults.fault(path, f"has no value; it must be {wanted}")
        return
    faults.fault(path, f"{show(value)} is not {wanted}{advice(value, hints)}")
