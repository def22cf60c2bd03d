"""A YAML file as plain values, with the line of every key and the faults found in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from modules.errors import ConfigError
from modules.interpolations import is_too_large
from modules.yaml_text import KeyPath, YamlError, parse, parse_argument


class YamlSource:
    """The values of a config file with overrides applied and interpolations resolved."""

    def __init__(self, name: str, values: dict[str, Any], lines: dict[KeyPath, int]):
        self.name = name
        self.values = values
        self._faults: list[tuple[KeyPath, KeyPath, str]] = []  # the key, that of the file, what
        self._lines = lines
        self._order = {path: number for number, path in enumerate(lines)}
        self._overridden: dict[KeyPath, int] = {}
        self._origins: dict[KeyPath, KeyPath] = {}

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> YamlSource:
        """Read a file, apply overrides, resolve interpolations.

        Raises:
            ConfigError: any of these is not possible.
        """
        source = cls.from_file(path)
        source.apply(overrides)
        source.resolve()
        return source

    @classmethod
    def from_file(cls, path: Path) -> YamlSource:
        """Read `path` as UTF-8 YAML.

        Raises:
            ConfigError: the file is missing, is not YAML or not a mapping.
        """
        text = _read_text(path)
        try:
            values, lines = parse(text)
        except YamlError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from None
        if values is None:
            values = {}
        if not isinstance(values, dict):
            found = "a list" if isinstance(values, list) else f"only {values!r}"
            raise ConfigError(f"{path} is {found}; a config has sections as `model:` and `train:`")
        return cls(str(path), values, lines)

    def apply(self, overrides: Sequence[str]) -> None:
        """Set `key.path=value` overrides.

        Raises:
            ConfigError: one is not of that form.
        """
        for override in overrides:
            self._override(override)

    def replace(self, values: dict[str, Any], origins: dict[KeyPath, KeyPath]) -> None:
        """Take other values; `origins` names the keys of the file that these are made of.

        Faults are then told of the file's keys, and of each the first.
        """
        self.values = values
        self._origins = origins

    def spell_out(self, section: str, key: str) -> None:
        """Take a number in place of a section for the section with this key alone."""
        value = self.values.get(section)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.values[section] = {key: value}
            for known in (self._lines, self._order, self._overridden):
                if (section,) in known:
                    known[section, key] = known[(section,)]

    def fault(self, path: KeyPath, message: str) -> None:
        """Note a fault of the key at `path`; the file's line is added where one is known."""
        self._faults.append((path, self._origin(path), message))

    def is_faulty(self, path: KeyPath) -> bool:
        """Whether a fault was noted of this key, or of one above or below it."""
        return any(_is_within(f[0], path) or _is_within(path, f[0]) for f in self._faults)

    def raise_if_faulty(self) -> None:
        """Raise one `ConfigError` that lists all faults noted so far, in the file's order."""
        if self._faults:
            faults = sorted(self._faults, key=lambda fault: self._position(fault[1]))
            if self._origins:
                faults = list({fault[1]: fault for fault in reversed(faults)}.values())[::-1]
            listed = "".join(f"\n  {self._place(path)}: {message}" for _, path, message in faults)
            raise ConfigError(f"{self.name} is not a valid config:{listed}")

    def _origin(self, path: KeyPath) -> KeyPath:
        """The key of the file that the value at `path` is from."""
        for length in range(len(path), 0, -1):
            if path in self._overridden or path[:length] not in self._origins:
                continue
            origin = self._origins[path[:length]]
            whole = (*origin, *path[length:])
            return whole if whole in self._lines or whole in self._overridden else origin
        return path

    def _place(self, path: KeyPath) -> str:
        key = ".".join(path)
        if self._override_of(path) is not None:
            return f"{key} (command line)"
        return f"{key} (line {self._lines[path]})" if path in self._lines else key

    def _position(self, path: KeyPath) -> tuple[int, int, int]:
        """What faults are sorted by: keys of the file, then missing ones, then the overrides."""
        override = self._override_of(path)
        if override is not None:
            return 2, override, 0
        if path in self._order:
            return 0, self._order[path], 0
        for length in range(len(path) - 1, 0, -1):
            inside = [n for key, n in self._order.items() if _is_within(key, path[:length])]
            if inside:
                return 0, inside[-1], 1
        return 1, 0, 0

    def _override_of(self, path: KeyPath) -> int | None:
        """The number of the override that gave `path`, or made a section for what it gave."""
        for known, number in self._overridden.items():
            if _is_within(path, known) or (_is_within(known, path) and path not in self._lines):
                return number
        return None

    def _override(self, override: str) -> None:
        key, separator, text = override.partition("=")
        path = tuple(key.split("."))
        if not separator or not all(path):
            raise ConfigError(
                f"command line: {override!r} is not an override; write key.path=value"
            )
        try:
            value = parse_argument(text)
        except YamlError as error:
            problem = str(error).removeprefix("line 1: ")
            raise ConfigError(f"command line: {override!r} is not valid YAML: {problem}") from None
        container: Any = self.values
        for length, part in enumerate(path, start=1):
            parent = ".".join(path[: length - 1])
            place: Any = part
            if isinstance(container, list):
                if not (part.isdecimal() and int(part) < len(container)):
                    raise ConfigError(
                        f"command line: {override!r}: {parent} has {len(container)} items, "
                        f"counted from 0; {part!r} is none of them"
                    )
                place = int(part)
            elif not isinstance(container, dict):
                raise ConfigError(
                    f"command line: {override!r}: {parent} is {container!r}, it has no keys"
                )
            if length == len(path):
                container[place] = value
            elif isinstance(container, dict) and container.get(place) is None:
                container[place] = {}
            container = container[place]
        self._overridden[path] = len(self._overridden)

    def resolve(self) -> None:
        """Put in what interpolations stand for.

        Raises:
            ConfigError: one has no goal.
        """
        try:
            if is_too_large(self.values):
                raise ConfigError(f"{self.name}: its interpolations repeat each other too much")
            config = OmegaConf.create(self.values)
            self.values = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            path = tuple(re.findall(r"[^.\[\]]+", str(error.full_key or "")))  # a.b[0]
            if path:
                self.fault(path, _interpolation_problem(error))
                self.raise_if_faulty()
            raise ConfigError(f"{self.name}: {_interpolation_problem(error)}") from None
        except RecursionError:
            raise ConfigError(f"{self.name}: its interpolations lead too far") from None


def escape(value: Any) -> Any:
    """Text with `${` in it as text that is no interpolation."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    return value


def _is_within(path: KeyPath, outer: KeyPath) -> bool:
    return path[: len(outer)] == outer


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_neighbours(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8") from None


def _neighbours(path: Path) -> str:
    for folder in (path.parent, Path("config")):
        found = sorted(p.name for p in folder.glob("[!.]*.yaml"))
        if found:
            return f"; {folder} has {', '.join(found)}"
    return ""


def _interpolation_problem(error: Exception) -> str:
    text = str(error).strip().splitlines()[0]
    if missing := re.fullmatch(r"Interpolation key '(.*)' not found", text):
        return f"${{{missing[1]}}}: the file has no key '{missing[1]}'"
    if variable := re.search(r"Environment variable '(.*)' not found", text):
        return f"the environment variable {variable[1]} is not set"
    if resolver := re.fullmatch(r"Unsupported interpolation type (.*)", text):
        return f"there is no ${{{resolver[1]}:...}}; ${{key.path}} and ${{oc.env:NAME}} are known"
    if "Recursive interpolation" in text:
        return "the interpolation leads back to itself"
    return f"{text}; text with ${{ that is no interpolation is written \\${{"
