import math

import pytest

from modules.yaml_text import YamlError, dump, parse, parse_argument


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-1", -1), ("0", 0), ("+1", "+1"), ("007", "007"), ("0x1f", "0x1f"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1e-4", 1e-4),
        ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("-.5e-1", -0.05), ("1.5", 1.5), (".inf", math.inf),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("true", True), ("False", False), ("~", None),
        ("null", None), ("1.2.3", "1.2.3"), ("1e", "1e"), (".", "."), ("-", "-"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_scalars(text, value):
    assert parse_argument(text) == value
    assert type(parse_argument(text)) is type(value)
    if text not in ("-",):
        assert parse(f"a: {text}")[0] == {"a": value}


def test_quoted_scalars_are_text():
    assert parse("a: '1'\nb: \"no\"\nc: 'null'\n")[0] == {"a": "1", "b": "no", "c": "null"}


def test_lines_in_the_order_of_the_text():
    values, lines = parse("b:\n  - x\n  - {y: 1}\n# comment\na: |\n  text\n  more\n")
    assert values == {"b": ["x", {"y": 1}], "a": "text\nmore\n"}
    assert list(lines.items()) == [
        (("b",), 1), (("b", "0"), 2), (("b", "1"), 3), (("b", "1", "y"), 3), (("a",), 5),
    ]  # fmt: skip


def test_backslashes_that_are_meant():
    text = 'a: "C:\\\\new"\nb: \'C:\\new\'\nc: C:\\new\nd: "C:/new"\ne: "a:\\n"\n'
    assert list(parse(text)[0].values()) == ["C:\\new", "C:\\new", "C:\\new", "C:/new", "a:\n"]


def test_keys_are_text():
    assert parse("1: a\nnull: b\ntrue: c\n1.0: d\n")[0] == {
        "1": "a", "null": "b", "true": "c", "1.0": "d",
    }  # fmt: skip


def test_aliases_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [*a, {x: 5, z: 6}]}\n"
    values = parse(text)[0]
    assert values["b"] == {"x": 1, "y": 3}
    assert values["c"] == {"x": 1, "y": 2}
    assert values["d"] == {"x": 1, "y": 2, "z": 6}
    values["c"]["x"] = 9  # what an alias stands for is a value of its own
    assert values["a"]["x"] == 1
    with pytest.raises(YamlError, match="line 1: << wants a mapping"):
        parse("a: {<<: 3}")


@pytest.mark.parametrize("text", ["a: " + "[" * 200 + "]" * 200, "a: " + "[" * 3000])
def test_depth_is_bounded(text):
    with pytest.raises(YamlError, match="nested deeper than 50 levels"):
        parse(text)


def test_dump_reads_back():
    texts = [
        "1",
        "1e-4",
        "007",
        "no",
        "1:30",
        "~",
        "",
        " a",
        "a: b",
        "# a",
        "<<",
        "=",
        "+1",
        "猫",
    ]
    values = {"a": texts, "b": [1, -1, 1e-5, 1e20, 0.1, True, None], "c": {"no": {}, "d": []}}
    assert parse(dump(values))[0] == values
    assert "猫" in dump(values)
