from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from omegaconf import MISSING

from modules.schema import INVALID, Minimum, Within, build_section, convert


class Faults:
    def __init__(self):
        self.lines = []

    def fault(self, path, message):
        self.lines.append(f"{'.'.join(path)}: {message}")


def both(value, annotation):
    """The converted value and the faults."""
    faults = Faults()
    return convert(value, annotation, faults, ("x",)), faults.lines


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, 1), (1.0, int, 1), (1, float, 1.0), (True, bool, True), ("a", str, "a"),
        (12, str, "12"), ("a/b", Path, Path("a/b")), (None, int | None, None), (3, int | None, 3),
        (3, float | int, 3), (3.5, int | float, 3.5), (3, Optional[float], 3.0),  # noqa: UP045
        ([1, 2.0], list[int], [1, 2]), ([1], Sequence[float], [1.0]), ([1], Iterable[int], [1]),
        ([0, 1], tuple[float, float], (0.0, 1.0)), ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([1, "a"], list, [1, "a"]), ([1], tuple, (1,)), ({"a": 1}, dict, {"a": 1}),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}), (None, dict[str, int], {}),
        ({"a": 1}, float | dict[str, float], {"a": 1.0}), (2, float | dict[str, float], 2.0),
        (["a"], list[str] | str, ["a"]), ("a", list[str] | str, "a"), ("b", Literal["a", "b"], "b"),
        (0.5, Annotated[float, Within(0, 1)], 0.5), (1, Annotated[int, Minimum(1)], 1),
        ({"a": [1]}, Any, {"a": [1]}), ("later", "Unknown", "later"), ("a", complex, "a"),
        ([0.9, 1], tuple[float | complex, float | complex], (0.9, 1.0)),
    ],
)  # fmt: skip
def test_values_that_fit(value, annotation, expected):
    converted, faults = both(value, annotation)
    assert faults == []
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("???", Any, "??? stands for a value of yours; set it here or on the command line"),
        (1.5, int, "1.5 is not a whole number"),
        (2**63, int, "9223372036854775808 is too large"),
        (float("nan"), int, "nan is not a finite number"),
        (float("inf"), float, "inf is not a finite number"),
        ("4", int, "'4' is not a whole number; write 4 without quotes"),
        ("4.5", int, "'4.5' is not a whole number"),
        ("1e-3", float, "'1e-3' is not a number; write 0.001 without quotes"),
        ("nan", float, "'nan' is not a number"),
        (None, float, "has no value; it must be a number"),
        (True, float, "true is not a number"),
        ("on", bool, "'on' is not true or false; write true"),
        ("off", bool, "'off' is not true or false; write false"),
        (False, str, "false is not text; put text in quotes: 'false'"),
        (1.5, str, "1.5 is not text; put text in quotes: '1.5'"),
        ({"a": 1}, str, "{'a': 1} is not text; put text with ': ' in quotes"),
        (None, str | list[str], "has no value; it must be text or a list"),
        ("a", int | list[int], "'a' is not a whole number or a list"),
        ("a", list[str], "'a' is not a list; write ['a']"),
        (None, list[str], "has no value; it must be a list"),
        (3, Mapping[str, int], "3 is not a mapping of names to values"),
        ([1], tuple[int, int], "has 1 values, 2 are wanted"),
        ("c", Literal["a", "b"], "'c' is not one of 'a', 'b'"),
        (1, Literal[True, "a"], "1 is not one of true, 'a'"),
        (-1, Annotated[int, Minimum(0)], "-1 is out of range; it must be at least 0"),
        (2, Annotated[float, Within(0, 1)], "2.0 is out of range; it must be from 0 to 1"),
        ("a", Annotated[int, Minimum(0)] | None, "'a' is not a whole number"),
        (-1, Annotated[int, Minimum(0)] | None, "-1 is out of range; it must be at least 0"),
        ("a", Literal["b"] | bool, "'a' is not one of 'b'"),
        (3, Literal["b"] | bool, "3 is not one of 'b' or true or false"),
        ("x" * 80, int, "'" + "x" * 56 + "... is not a whole number"),
    ],
)
def test_values_that_do_not_fit(value, annotation, message):
    converted, faults = both(value, annotation)
    assert converted is INVALID
    assert faults == [f"x: {message}"]


def test_faults_within_values_name_their_place():
    assert both([1, "a", None], list[int])[1] == [
        "x.1: 'a' is not a whole number",
        "x.2: has no value; it must be a whole number",
    ]
    assert both({"a": "b"}, float | dict[str, float])[1] == ["x.a: 'b' is not a number"]
    assert both([{"a": 1}, {"a": "b"}], list[dict[str, int]])[1] == [
        "x.1.a: 'b' is not a whole number"
    ]


@dataclass(frozen=True, kw_only=True)
class Part:
    module: str = MISSING
    size: int = 3


@dataclass(frozen=True, kw_only=True)
class Whole:
    first: Part = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)
    maybe: Part | None = None
    speed: float = 1.0


def section(values):
    faults = Faults()
    return build_section(Whole, values, faults), faults.lines


def test_sections():
    whole, faults = section({"first": {"module": "a"}, "parts": {"b": {"module": "c", "size": 1}}})
    assert faults == []
    assert whole == Whole(first=Part(module="a"), parts={"b": Part(module="c", size=1)})


def test_faults_of_sections():
    whole, faults = section({"parts": {"b": None}, "maybe": {"sizee": 1}, "size": 2, "speed": "x"})
    assert faults == [
        "parts.b.module: is missing; it has no default",
        "maybe.sizee: no such key; did you mean 'size'?",
        "maybe.module: is missing; it has no default",
        "size: no such key; did you mean 'first.size'?",
        "speed: 'x' is not a number",
        "first.module: is missing; it has no default",
    ]
    assert whole.speed == 1.0
    assert section(3)[1][0] == ": 3 is not a section with keys of its own"


def test_a_value_left_out_is_found_where_anything_may_stand():
    converted, faults = both({"list": [{"a": 1}, {"a": "???"}], "text": "why???"}, Any)
    assert converted is INVALID
    advice = "??? stands for a value of yours; set it here or on the command line"
    assert faults == [f"x.list.1.a: {advice}"]
    assert both([{"a": 1}], Any) == ([{"a": 1}], [])
