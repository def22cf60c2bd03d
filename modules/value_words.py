"""Values and types in the words of messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping of names to values",
    tuple: "a list",
}


def show(value: Any) -> str:
    """A value as in YAML, and not longer than a line."""
    if value is None:
        return "nothing"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, str):
        shown = quote(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def quote(text: str) -> str:
    """Text in quotes; backslashes of Windows paths stay single."""
    return f"'{text}'" if text.isprintable() and "'" not in text else repr(text)


def describe(annotation: Any) -> str:
    """What an annotation wants, in plain words."""
    annotation = _without_bounds(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(show(choice) for choice in get_args(annotation))
    known = get_origin(annotation) or annotation
    return _WORDS.get(known, getattr(annotation, "__name__", str(annotation)))


def advice(value: Any, annotations: tuple) -> str:
    """`; what to do` about a value that is none of `annotations`, where that is plain."""
    wanted = [_without_bounds(annotation) for annotation in annotations]
    if str in wanted:
        if isinstance(value, Mapping):
            return "; put text with ': ' in quotes"
        return f"; put text in quotes: '{show(value)}'" if isinstance(value, bool | float) else ""
    if not isinstance(value, str):
        return ""
    if bool in wanted and value.lower() in ("yes", "no", "on", "off", "true", "false"):
        return f"; write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
    number = _read_number(value)
    for kind in (int, float):
        if number is not None and kind in wanted and (kind is float or number == int(number)):
            return f"; write {kind(number)} without quotes"
    return ""


def _without_bounds(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
