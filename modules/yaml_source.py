"""A YAML file as plain values, with the line of every key and the faults found in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

KeyPath = tuple[str, ...]


class ConfigError(ValueError):
    """What is wrong with a config, in words for the person who wrote it."""


class YamlSource:
    """The values of a config file with overrides applied and interpolations resolved."""

    def __init__(self, name: str, values: dict[str, Any], lines: dict[KeyPath, int]):
        self.name = name
        self.values = values
        self.faults: list[str] = []
        self._faulty: set[KeyPath] = set()
        self._lines = lines
        self._overridden: set[KeyPath] = set()

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> YamlSource:
        """Read `path` as UTF-8 YAML and set `key.path=value` overrides in it.

        Raises:
            ConfigError: the file is missing, is not YAML, not a mapping, or an override is not
                of the form `key.path=value`.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file{_neighbours(path)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            config = OmegaConf.create(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
        except OmegaConfBaseException as error:
            raise ConfigError(f"{path}: {_first_line(error)}") from None
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: a config is a list of `section:` keys, this is not")

        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines)
        source = cls(str(path), {}, lines)
        for override in overrides:
            source._override(config, override)
        try:
            source.values = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            source.fault(tuple(str(error.full_key or "").split(".")), _first_line(error))
            source.raise_if_faulty()
        return source

    def _override(self, config: Any, override: str) -> None:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"command line: {override!r} is not an override; write key.path=value"
            )
        key_path = tuple(key.split("."))
        try:
            value = OmegaConf.create(f"value: {text}").value
            if isinstance(value, int) and ":" in text:  # YAML 1.1 reads 1:30 as 90
                value = text
        except (yaml.YAMLError, OmegaConfBaseException):
            value = text
        try:
            OmegaConf.update(config, key, value, force_add=True)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"command line: {override!r}: {_first_line(error)}") from None
        self._overridden.add(key_path)

    def fault(self, path: KeyPath, message: str) -> None:
        """Note a fault of the key at `path`; the file's line is added where one is known."""
        key = ".".join(path) or "the file"
        if any(path[: len(known)] == known for known in self._overridden):
            place = f"{key} (command line)"
        elif path in self._lines:
            place = f"{key} (line {self._lines[path]})"
        else:
            place = key
        self.faults.append(f"{place}: {message}")
        self._faulty.add(path)

    def is_faulty(self, path: KeyPath) -> bool:
        """Whether a fault was noted of this key, or of one above or below it."""
        return any(
            known[: len(path)] == path or path[: len(known)] == known for known in self._faulty
        )

    def raise_if_faulty(self) -> None:
        """Raise one `ConfigError` that lists all faults noted so far."""
        if self.faults:
            listed = "".join(f"\n  {fault}" for fault in self.faults)
            raise ConfigError(f"{self.name} is not a valid config:{listed}")


def _collect_lines(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if path in lines:
        return  # an alias that contains itself ends here
    if path and node is not None:
        lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            _collect_lines(value, child, lines)
            lines[child] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _collect_lines(value, (*path, str(position)), lines)


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("config")
    found = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"; {folder} has {', '.join(found)}" if found else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _first_line(error)
    if mark is None:
        return problem
    if "found character '\\t'" in problem:
        problem = "a tab; indent with spaces"
    elif "unknown escape character" in problem:
        problem += "; write Windows paths in 'single quotes' or with /"
    return f"line {mark.line + 1}: {problem}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


