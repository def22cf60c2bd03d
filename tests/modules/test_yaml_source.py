import time

import pytest

from modules.errors import ConfigError
from modules.yaml_source import YamlSource


def read(path, text, *overrides):
    path = path / "c.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text, encoding="utf-8")
    return YamlSource.read(path, overrides)


@pytest.fixture
def problem(tmp_path, monkeypatch):
    """What is said of a text and overrides, without the file's name."""
    monkeypatch.chdir(tmp_path)

    def say(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, text, *overrides)
        return str(caught.value).replace(str(tmp_path / "c.yaml"), "c.yaml")

    return say


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "line 2: a tab; indent with spaces"),
        ("a:\n  b: 1\n  b: 2\n", "line 3: the key 'b' is here twice"),
        (
            'a: "C:\\models"\n',
            "line 1: found unknown escape character 'm'; write Windows paths in 'single quotes' or "
            "with /",
        ),
        (
            'a: "C:\\Users"\n',
            "line 1: expected escape sequence of 8 hexadecimal numbers, but found 's'; write "
            "Windows paths in 'single quotes' or with /",
        ),
        *(
            (
                f"b: 1\na: {written}\n",
                f"line 2: in {written} a backslash begins an escape, so it is read as {read!r}; "
                "write Windows paths in 'single quotes' or with /",
            )
            for written, read in [
                ('"C:\\new"', "C:\new"),
                ('"D:\\Loras\\Projects"', "D:\u2028oras\u2029rojects"),
                ('"..\\training"', "..\training"),
            ]
        ),
        ("a: {b: 1\n", "line 2: expected ',' or '}', but got '<stream end>'"),
        (
            "a: b: c\n",
            "line 1: a ':' where none can be; put text with ': ' in quotes, indent keys alike",
        ),
        (
            "a: @b\n",
            "line 1: found character '@' that cannot start any token; put text that begins with "
            "it in quotes",
        ),
        (
            "a: {b: ???}\n",
            "line 1: expected the node content, but found '?'; put text that begins with it in "
            "quotes",
        ),
        ("a: 1\n---\nb: 1\n", "line 2: a second document begins; a config is one"),
        ("a: !x 1\n", "line 1: '!x' is a tag; a config has plain values only"),
        ("[a]: 1\n", "line 1: a list or a mapping can't be a key"),
        ("a: 1\nb: \x07\n", "line 2: there is a control character, '\\x07'"),
        ("a: *b\n", "line 1: found undefined alias 'b'"),
        ("a: 1\nb: &b\n  c: *b\n", "line 2: an alias contains itself"),
    ],
)
def test_texts_that_are_no_yaml(problem, text, message):
    assert problem(text) == f"c.yaml is not valid YAML: {message}"


def test_files_that_cannot_be_read(problem, tmp_path):
    not_utf8 = "is not UTF-8 text (line 2); save it as UTF-8"
    assert problem("a: 1\nb: é\n".encode("latin-1")) == f"c.yaml {not_utf8}"
    assert problem("a: 1\n".encode("utf-16")) == f"c.yaml {not_utf8.replace('2', '1')}"
    assert problem("- a\n") == "c.yaml is a list; a config has sections as `model:` and `train:`"
    assert problem("3\n") == "c.yaml is only 3; a config has sections as `model:` and `train:`"
    with pytest.raises(ConfigError) as caught:
        YamlSource.read(tmp_path / "d.yaml")
    assert str(caught.value) == f"{tmp_path / 'd.yaml'}: no such file; {tmp_path} has c.yaml"
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        YamlSource.read(tmp_path / "folder.yaml")


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").values == {"a": 1, "b": 2}
    assert read(tmp_path, "").values == {}


def test_aliases_of_aliases_are_bounded(problem):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n"
    began = time.process_time()
    assert problem(bomb) == (
        "c.yaml is not valid YAML: more than 20,000 values; aliases repeat too much"
    )
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${oc.env:SURELY_NOT_SET}", "the environment variable SURELY_NOT_SET is not set"),
        ("${c.d}", "${c.d}: the file has no key 'c.d'"),
        ("${b}", "the interpolation leads back to itself"),
        ("${no:1}", "there is no ${no:...}; ${key.path} and ${oc.env:NAME} are known"),
    ],
)
def test_interpolations_without_a_goal(problem, value, message):
    text = f"a: 1\nb: '{value}'\n"
    assert problem(text) == f"c.yaml is not a valid config:\n  b (line 2): {message}"


def test_a_broken_interpolation(problem):
    message = problem("a: 1\nb: '${x'\n")
    assert message.startswith("c.yaml is not a valid config:\n  b (line 2): ")
    assert message.endswith("; text with ${ that is no interpolation is written \\${")


def test_interpolation(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "/data")
    values = read(tmp_path, "a: 1e-4\nb: ${a}\nc: ${oc.env:PLACE}/cats\n").values
    assert values == {"a": 1e-4, "b": 1e-4, "c": "/data/cats"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("c=d", "c=d"),
        ("null", None),
        ("", None),
        ("1e-4", 1e-4),
        ("-0.5", -0.5),
        ("-.5", -0.5),
        ("-3", -3),
        ("true", True),
        ("no", "no"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("[a,b]", ["a", "b"]),
        ("[a cat, a dog]", ["a cat", "a dog"]),
        ("{unet: 1e-4}", {"unet": 1e-4}),
        ("'1'", "1"),
        ("C:\\models\\sd", "C:\\models\\sd"),
        ("a photo: of # a *cat*", "a photo: of # a *cat*"),
        ("*", "*"),
        ("<<", "<<"),
        ("a\nb: c", "a\nb: c"),
        ("猫", "猫"),
    ],
)
def test_overrides(tmp_path, text, value):
    assert read(tmp_path, "a: {b: 1}\n", f"a.b={text}").values == {"a": {"b": value}}


def test_overrides_make_sections_and_reach_into_lists(tmp_path):
    text = "a:\nb: [1, {c: 2}]\n"
    values = read(tmp_path, text, "a.x.y=1", "b.0=5", "b.1.c=6", "a.x.y=2", "d=").values
    assert values == {"a": {"x": {"y": 2}}, "b": [5, {"c": 6}], "d": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "'a' is not an override; write key.path=value"),
        ("=1", "'=1' is not an override; write key.path=value"),
        ("a..b=1", "'a..b=1' is not an override; write key.path=value"),
        ("a.b.c=1", "'a.b.c=1': a.b is 1, it has no keys"),
        ("l.2=1", "'l.2=1': l has 2 items, counted from 0; '2' is none of them"),
        ("a.b=[1", "'a.b=[1' is not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_overrides_that_are_none(problem, override, message):
    assert problem("a: {b: 1}\nl: [1, 2]\n", override) == f"command line: {message}"


def test_faults_stand_in_the_order_of_the_file(tmp_path):
    source = read(tmp_path, "b:\n  x: 1\n  y: 2\na: 1\n", "c.d=1", "b.x=2")
    for path in [("e",), ("c",), ("a",), ("b", "z"), ("b", "x"), ("b", "y"), ("b",)]:
        source.fault(path, "wrong")
    assert source.is_faulty(("b",))
    assert source.is_faulty(("b", "y", "deeper"))
    assert not source.is_faulty(("f",))
    with pytest.raises(ConfigError) as caught:
        source.raise_if_faulty()
    assert str(caught.value).splitlines()[1:] == [
        "  b (line 1): wrong",
        "  b.y (line 3): wrong",
        "  b.z: wrong",
        "  a (line 4): wrong",
        "  e: wrong",
        "  c (command line): wrong",
        "  b.x (command line): wrong",
    ]
