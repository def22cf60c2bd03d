"""YAML text <-> plain values, by YAML 1.2's rules for plain scalars.

PyYAML reads YAML 1.1, where `no` is false, `1:30` is 90, `007` is 7 and `1e-4` is text. Here they
are text, text, text and a number. Keys are always text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

KeyPath = tuple[str, ...]

MAX_VALUES = 20_000
MAX_DEPTH = 50

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"0|-?[1-9][0-9]{0,999}", "-0123456789"),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


_WINDOWS_PATH = re.compile(r'"(?:[A-Za-z]:|\.\.?)\\\w\w')
_UNWRITABLE = re.compile("[\\0\ud800-\udfff]")  # NUL, and halves of a pair of UTF-16


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - filled below, as PyYAML wants it


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text."""


for _tag, _pattern, _first in _SCALARS:
    _compiled = re.compile(f"^(?:{_pattern})$")
    _empty = [""] if _tag == "null" else []
    _Loader.add_implicit_resolver(_PREFIX + _tag, _compiled, [*_first, *_empty])
    _Dumper.add_implicit_resolver(_PREFIX + _tag, _compiled, list(_first))


class YamlError(ValueError):
    """What is wrong with a YAML text; begins with the line where one is known."""


def parse(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the values of a YAML text and the line of every key, in the text's order.

    Raises:
        YamlError: it is no YAML, repeats a key, contains itself, or has more than 20,000 values
            after its aliases are written out.
    """
    try:
        loader = _Loader(text)
        return (document := _Document(loader)).value(loader.get_single_node(), ()), document.lines
    except yaml.YAMLError as error:
        raise YamlError(_problem(error, text)) from None
    except RecursionError:
        raise YamlError(f"nested deeper than {MAX_DEPTH} levels") from None


def parse_argument(text: str) -> Any:
    """Return the value of a command-line argument: a scalar, or a list, mapping or quoted text.

    Everything else is text as it stands, `a: b`, `a # b`, `*` and `C:\\models` too.
    """
    text = text.strip()
    if _UNWRITABLE.search(text):
        raise YamlError(f"{text!r} has a character that no file can hold")
    if text.startswith(("[", "{", '"', "'")):
        return parse(text)[0]
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag == _PREFIX + "merge":
        return text
    return loader.construct_object(yaml.ScalarNode(tag, text))


def dump(values: Any) -> str:
    """Return values as YAML text that `parse` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Document:
    """Walks a tree of nodes; counts, so that aliases of aliases can't grow without bounds."""

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            tag = node.tag.removeprefix(_PREFIX)
            raise YamlError(f"line {_line(node)}: {node.value!r} is no {tag}") from None
        if isinstance(value, str):
            _check_text(value, node)
            _check_path(node)
        return value

    def __init__(self, loader: _Loader):
        self.lines: dict[KeyPath, int] = {}
        self._loader = loader
        self._open: list[yaml.Node] = []
        self._count = 0

    def value(self, node: yaml.Node | None, path: KeyPath) -> Any:
        if node is None:
            return None
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES:,} values; aliases repeat too much")
        if len(path) > MAX_DEPTH:
            raise YamlError(f"line {_line(node)}: nested deeper than {MAX_DEPTH} levels")
        if any(node is outer for outer in self._open):
            raise YamlError(f"line {_line(node)}: an alias contains itself")
        if path:
            self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.value(item, (*path, str(n))) for n, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"line {_line(key)}: a list or a mapping can't be a key")
            _check_text(key.value, key)
            if key.tag == _PREFIX + "merge":
                parts = self.value(item, path)
                for part in parts if isinstance(parts, list) else [parts]:
                    if not isinstance(part, dict):
                        raise YamlError(f"line {_line(key)}: << wants a mapping")
                    merged = {**part, **merged}
                continue
            name = key.value
            if name in values:
                raise YamlError(f"line {_line(key)}: the key '{name}' is here twice")
            self.lines[(*path, name)] = _line(key)
            values[name] = self.value(item, (*path, name))
        return {**merged, **values}


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _check_text(text: str, node: yaml.Node) -> None:
    if _UNWRITABLE.search(text):
        raise YamlError(f"line {_line(node)}: {text!r} has a character that no file can hold")


def _check_path(node: yaml.ScalarNode) -> None:
    """Refuse a Windows path whose backslashes were read as escapes: \\n, \\t, \\L, \\P..."""
    mark = node.start_mark
    if node.style != '"' or mark.buffer is None:
        return
    written = mark.buffer[mark.pointer : mark.pointer + node.end_mark.index - mark.index]
    if _WINDOWS_PATH.match(written):
        raise YamlError(
            f"line {_line(node)}: in {written} a backslash begins an escape, so it is read as "
            f"{node.value!r}; write Windows paths in 'single quotes' or with /"
        )


def _problem(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    if mark is None:
        position = getattr(error, "position", None)  # of a character that YAML doesn't allow
        if position is None:
            return problem
        line = text.count("\n", 0, position) + 1
        return f"line {line}: there is a control character, {text[position]!r}"
    line = mark.line + 1
    if "found character '\\t'" in problem:
        problem = "a tab; indent with spaces"
    elif "escape" in problem:
        problem += "; write Windows paths in 'single quotes' or with /"
    elif "that cannot start any token" in problem or "found '?'" in problem:
        problem += "; put text that begins with it in quotes"
    elif "mapping values are not allowed" in problem:
        problem = "a ':' where none can be; put text with ': ' in quotes, indent keys alike"
    elif "found another document" in problem:
        problem = "a second document begins; a config is one"
    elif "could not determine a constructor for the tag" in problem:
        problem = f"{problem.rpartition('tag ')[2]} is a tag; a config has plain values only"
    return f"line {line}: {problem}"
