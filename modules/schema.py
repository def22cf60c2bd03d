"""Values from a file -> annotated Python values; every mismatch becomes a fault with its key.

Understands what the config's dataclasses and the components' signatures are annotated with:
bool, int, float, str, Path, Literal, list, tuple, dict, unions, None, dataclasses, and numbers with
bounds as `Annotated[int, AtLeast(1)]`. Anything else is passed through unchecked.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from modules.foreign_names import FOREIGN_NAMES

INVALID = object()


class FaultList(Protocol):
    """Where faults are noted."""

    def fault(self, path: tuple[str, ...], message: str) -> None: ...


@dataclass(frozen=True)
class AtLeast:
    """A bound of a number in an annotation."""

    low: float

    def problem(self, number: float) -> str | None:
        return None if number >= self.low else f"must be at least {self.low:g}"


@dataclass(frozen=True)
class Within:
    """Both bounds of a number in an annotation, included."""

    low: float
    high: float

    def problem(self, number: float) -> str | None:
        within = self.low <= number <= self.high
        return None if within else f"must be from {self.low:g} to {self.high:g}"


def build_section(cls: type, values: Any, faults: FaultList, path: tuple[str, ...] = ()) -> Any:
    """Make the dataclass `cls` of a mapping; a faulty key is noted and keeps its default."""
    if values is None:
        values = {}  # `save:` with nothing under it
    if not isinstance(values, Mapping):
        faults.fault(path, f"{_show(values)} is not a section with keys of its own")
        values = {}
    hints = get_type_hints(cls, include_extras=True)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            faults.fault((*path, str(key)), f"no such key{_hint(cls, str(key), path)}")
            continue
        converted = convert(value, hints[key], faults, (*path, key))
        if converted is not INVALID:
            arguments[key] = converted
    for name in _required(cls) - set(values):
        faults.fault((*path, name), "is missing; it has no default")
    for name, hint in hints.items():  # a section left out may still have required keys
        if name not in values and dataclasses.is_dataclass(hint):
            arguments[name] = build_section(hint, {}, faults, (*path, name))  # type: ignore[arg-type]
    return cls(**arguments)


def convert(value: Any, hint: Any, faults: FaultList, path: tuple[str, ...]) -> Any:
    """Return `value` as `hint` wants it, or INVALID after noting a fault at `path`."""
    if value == MISSING and isinstance(value, str):
        faults.fault(path, "??? stands for a value of yours; set it here or on the command line")
        return INVALID
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, str):
        return value
    if origin is Annotated:
        return _bounded(convert(value, arguments[0], faults, path), arguments[1:], faults, path)
    if origin in (Union, types.UnionType):
        return _one_of_several(value, arguments, faults, path)
    if origin is Literal:
        return _choice(value, arguments, faults, path)
    if dataclasses.is_dataclass(hint):
        return build_section(hint, value, faults, path)  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence, Iterable):
        return _sequence(value, origin, arguments, faults, path)
    if origin in (dict, Mapping):
        return _mapping(value, arguments, faults, path)
    return _scalar(value, hint, faults, path)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that is most like `name`, or nothing."""
    known = sorted(known)
    foreign = FOREIGN_NAMES.get(name)
    if foreign in known:
        return f"; did you mean '{foreign}'?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _required(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls) if f.default is MISSING}


def _hint(cls: type, key: str, path: tuple[str, ...]) -> str:
    own = [f.name for f in dataclasses.fields(cls)]
    near = nearest(key, own)
    if near:
        return near
    target = FOREIGN_NAMES.get(key, key)
    if not path:  # a key of a section, written outside it
        for section, hint in get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint) and target in get_type_hints(hint):
                return f"; did you mean '{section}.{target}'?"
    elif "." in target:
        return f"; did you mean '{target}'?"
    return f"; allowed: {', '.join(own)}"


def _bounded(value: Any, bounds: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if value is INVALID:
        return INVALID
    for problem in (bound.problem(value) for bound in bounds if hasattr(bound, "problem")):
        if problem:
            faults.fault(path, f"{_show(value)} is out of range; it {problem}")
            return INVALID
    return value


class _Trial:
    """Collects the faults of one attempt, to be shown or thrown away."""

    def __init__(self) -> None:
        self.notes: list[tuple[tuple[str, ...], str]] = []

    def fault(self, path: tuple[str, ...], message: str) -> None:
        self.notes.append((path, message))


def _one_of_several(value: Any, hints: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not type(None))
    if len(hints) == 1:
        return convert(value, hints[0], faults, path)
    best: _Trial | None = None
    for hint in hints:
        trial = _Trial()
        converted = convert(value, hint, trial, path)
        if converted is not INVALID:
            return converted
        if best is None or any(len(at) > len(path) for at, _ in trial.notes):
            best = trial  # the attempt that came further explains more
    assert best is not None
    if not any(len(at) > len(path) for at, _ in best.notes):
        wanted = " or ".join(_describe(hint) for hint in hints)
        faults.fault(path, f"{_show(value)} is not {wanted}")
    else:
        for at, message in best.notes:
            faults.fault(at, message)
    return INVALID


def _choice(value: Any, choices: tuple, faults: FaultList, path: tuple[str, ...]) -> Any:
    if isinstance(value, bool) and value not in [c for c in choices if isinstance(c, bool)]:
        value = {True: "yes", False: "no"}[value]  # YAML 1.1 reads `no` as a truth value
    if value in choices:
        return value
    near = nearest(str(value), [str(choice) for choice in choices])
    listed = ", ".join(repr(choice) for choice in choices)
    faults.fault(path, f"{_show(value)} is not one of {listed}{near}")
    return INVALID


def _sequence(
    value: Any, origin: Any, arguments: tuple, faults: FaultList, path: tuple[str, ...]
) -> Any:
    if not isinstance(value, list | tuple):
        faults.fault(path, f"{_show(value)} is not a list; write [{value}]")
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
        faults.fault(path, f"{_show(value)} is not a mapping of names to values")
        return INVALID
    hint = arguments[1] if arguments else Any
    items = {str(k): convert(v, hint, faults, (*path, str(k))) for k, v in value.items()}
    return INVALID if any(item is INVALID for item in items.values()) else items


def _scalar(value: Any, hint: Any, faults: FaultList, path: tuple[str, ...]) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint not in (bool, int, float, str, type(None)):
        return value  # a type of a package's own: the class itself will judge
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and numeric:
        if not math.isfinite(value):
            faults.fault(path, f"{value} is not a finite number")
            return INVALID
        return float(value)
    if hint is int and numeric and value == int(value):
        return int(value)
    if type(value) is hint:
        return value
    if hint is str and numeric:
        return str(value)
    quoted = isinstance(value, str) and hint in (int, float) and _is_number(value)
    advice = "; remove the quotes" if quoted else ""
    faults.fault(path, f"{_show(value)} is not {_describe(hint)}{advice}")
    return INVALID


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping of names to values",
    tuple: "a list",
}


def _describe(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _describe(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    return _WORDS.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
