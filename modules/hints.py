""" "Did you mean": the nearest name, and the section a misplaced key belongs to."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from modules.foreign_names import FOREIGN_NAMES, FOREIGN_PLACES, PLACES

_ELSEWHERE = {*FOREIGN_NAMES, *FOREIGN_PLACES, *PLACES}


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that is most like `name`, or nothing."""
    known = sorted(known)
    if FOREIGN_NAMES.get(name) in known:
        return f"; did you mean '{FOREIGN_NAMES[name]}'?"
    by_lower = {candidate.lower(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def key_hint(key: str, path: tuple[str, ...], section: type, root: type) -> str:
    """What an unknown key of `section`, which stands at `path` under `root`, may be meant for."""
    if FOREIGN_PLACES.get(key, "").partition(".")[0] in _field_names(root):
        return f"; did you mean '{FOREIGN_PLACES[key]}'?"
    own = [field.name for field in dataclasses.fields(section)]
    target = FOREIGN_NAMES.get(key, key)
    if target not in own:
        place = next((".".join((*path, name, key)) for name in _sections_with(key, section)), None)
        if place is None and PLACES.get(target, "").partition(".")[0] in _field_names(root):
            place = PLACES[target]
        if place is None:
            place = next((f"{name}.{target}" for name in _sections_with(target, root)), None)
        if place is None and path and target in _field_names(root):
            place = target  # a section of its own
        if place is not None:
            if path[:1] == ("networks",):
                place = place.replace("<name>", path[1])
            return f"; did you mean '{place}'?"
    misspelt = difflib.get_close_matches(key, _ELSEWHERE - {key}, n=1, cutoff=0.85)
    if misspelt and not nearest(key, own):
        return key_hint(misspelt[0], path, section, root)
    return nearest(key, own) or f"; allowed: {', '.join(own)}"


def _sections_with(key: str, root: type) -> Iterator[str]:
    for name, annotation in get_type_hints(root).items():
        for section in _sections_in(annotation):
            if key not in ("module", "args") and key in _field_names(section):
                yield name


def _sections_in(annotation: Any) -> list[type]:
    is_union = get_origin(annotation) in (Union, UnionType)  # a section or None
    candidates = get_args(annotation) if is_union else [annotation]
    return [c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)]


def _field_names(section: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]
