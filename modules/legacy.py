"""YAMLs written for the original sd-trainer: recognised, translated to today's keys, and kept.

They have its key names, `model.input_path`, `train.lr`, `feature`, `network`; nothing else in the
code knows these. See `legacy_keys` for the names and `legacy_table` for what became of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from modules.errors import ConfigError
from modules.files import write_atomically
from modules.legacy_keys import Legacy, read_keys
from modules.legacy_table import TABLE, WITHOUT_COUNTERPART
from modules.yaml_source import YamlSource, escape
from modules.yaml_text import KeyPath, dump

logger = logging.getLogger(__name__)


def translate(source: YamlSource, overrides: Sequence[str], *, today: type) -> list[str]:
    """Give a source in the original's keys today's ones; faults keep the names of the file.

    `today` is the schema. Overrides in the original's keys are taken into the file before; the
    others are returned, to be applied after it. Another source is left as it is.
    """
    if not is_legacy(source.values, today):
        return list(overrides)
    later = [text for text in overrides if _is_todays(text, today)]
    source.apply([text for text in overrides if text not in later])
    source.resolve()
    _refuse_todays(source, today)
    noted = _NotedFaults(source)
    values = read_keys(source.values, noted)
    translated: dict[str, Any] = {}
    faults = []
    for row in TABLE:
        names = row.old.split()
        if names[0] not in values:
            continue
        if _path(names[0]) in noted.paths:
            faults.append((row.today, "is not valid"))  # not shown, but it ends further checks
            continue
        try:
            value = row.make(*(values.get(name) for name in names))
        except ValueError as error:
            faults.append((row.today, str(error)))
            continue
        if value is not None:
            _put(translated, _path(row.today), value)
    if values.get("save.args.num_images") == 0:
        translated.pop("sample", None)
    if "name" not in translated.get("save", {}):
        _put(translated, ("save", "name"), Path(source.name).stem)
    source.replace(
        escape(translated), {_path(row.today): _path(row.old.split()[0]) for row in TABLE}
    )
    for key, message in faults:
        source.fault(_path(key), message)
    return later


def keep(path: Path, overrides: Sequence[str], *, today: type, check: bool) -> None:
    """Write the translation of a file in the original's keys beside it, and log where.

    The file of an earlier run is left if it says the same, else the name gets a number. With
    `check` nothing is written. Of a file that is valid with the overrides only, theirs go in.
    """
    source = YamlSource.from_file(path)
    if not is_legacy(source.values, today):
        return
    text, faulty = _translation(path, [], today)
    if faulty:
        text, _ = _translation(path, overrides, today)
    said = f"{path} has the key names of the original sd-trainer"
    for folder in dict.fromkeys([path.parent, Path()]):
        target = _free_name(folder, path.stem, text)
        if check:
            logger.info("%s; a run writes their translation to %s", said, target)
            return
        try:
            if not target.exists():
                write_atomically(target, text)
        except OSError:  # a folder that is only read, as a mounted one
            continue
        logger.info("%s; it was translated to %s", said, target)
        return
    logger.warning("%s; their translation can't be written here or beside it", said)


def is_legacy(values: dict[str, Any], today: type) -> bool:
    """Whether a file has the original's keys.

    It has some that only the original had and none that only today's schema has; or both, but it
    names the model as the original did and has more of the former. So a slip in one of today's
    files stays one, and an old file that was half changed is refused as what it is.
    """
    keys = list(_keys(values))
    old = [key for key in keys if _knows(Legacy, key) and not _knows(today, key)]
    new = [key for key in keys if _knows(today, key) and not _knows(Legacy, key)]
    return bool(old) and (not new or (("model", "input_path") in old and len(old) > len(new)))


def _translation(path: Path, overrides: Sequence[str], today: type) -> tuple[str, bool]:
    """The text of a file's translation, and whether the file has faults."""
    source = YamlSource.from_file(path)
    lines = [
        f"# Translated from {path.name}, which has the key names of the original sd-trainer.",
        "# As it did: gradients are not clipped, no images are drawn before training.",
    ]
    dropped = [f"#   {key}: {reason}" for key, reason in _dropped(source.values)]
    if dropped:
        lines += ["# Nothing stands for:", *dropped]
    try:
        translate(source, overrides, today=today)
        source.raise_if_faulty()
    except ConfigError:
        return "", True
    return "\n".join(lines) + "\n" + dump(source.values), False


def _dropped(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of the file that nothing stands for, and why."""
    for key, reason in WITHOUT_COUNTERPART.items():
        if _get(values, _path(key)) is not None:
            yield key, reason
    for name in _get(values, ("dataset", "loader", "args")) or ():
        if name != "num_workers":
            yield f"dataset.loader.args.{name}", "the trainer's own loader has no such setting"


def _free_name(folder: Path, stem: str, text: str) -> Path:
    """A name that no file has, or one whose file is this text."""
    number = 1
    while True:
        target = folder / f"{stem}.translated{f'-{number}' if number > 1 else ''}.yaml"
        if not target.exists() or target.read_bytes() == text.encode():
            return target
        number += 1


class _NotedFaults:
    """Passes faults on to a source and knows of which keys they were."""

    def __init__(self, source: YamlSource):
        self._source = source
        self.paths: set[KeyPath] = set()

    def fault(self, path: KeyPath, message: str) -> None:
        self.paths.add(path)
        self._source.fault(path, message)


def _is_todays(override: str, today: type) -> bool:
    key = _path(override.partition("=")[0])
    return _knows(today, key) and not _knows(Legacy, key)


def _refuse_todays(source: YamlSource, today: type) -> None:
    """Note a fault of each key that only today's schema has, and take it out."""
    for key in list(_keys(source.values)):
        if _knows(Legacy, key) or not _knows(today, key) or not _knows(Legacy, key[:-1]):
            continue
        name = ".".join(key)
        old = [row.old.split()[0] for row in TABLE if f"{row.today}.".startswith(f"{name}.")]
        if len(key) == 1:
            old = list(dict.fromkeys(one.partition(".")[0] for one in old))
            advice = f"what it says stands in {', '.join(old)} there"
        else:
            advice = f"the original's is {old[0]!r}" if old else ""
        source.fault(
            key,
            "is today's key in a file with the original's; "
            + (advice if old else "give it on the command line instead"),
        )
        section = source.values if len(key) == 1 else source.values.get(key[0], {})
        section.pop(key[-1], None)


def _keys(values: dict[str, Any]) -> Iterator[KeyPath]:
    """The sections of a file, and the keys in them."""
    for name, section in values.items():
        yield (name,)
        if isinstance(section, dict):
            yield from ((name, key) for key in section)


def _knows(schema: Any, key: KeyPath) -> bool:
    """Whether a schema has a key; an open mapping has every one."""
    if not key:
        return True
    is_union = get_origin(schema) in (Union, UnionType)
    for kind in get_args(schema) if is_union else (schema,):
        if kind is Any or get_origin(kind) in (dict, list):
            return True
        if dataclasses.is_dataclass(kind):
            hint = _hints(kind).get(key[0])  # type: ignore[arg-type]
            if hint is not None and _knows(hint, key[1:]):
                return True
    return False


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def _path(key: str) -> KeyPath:
    return tuple(key.split("."))


def _get(values: Any, key: KeyPath) -> Any:
    for part in key:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _put(values: dict[str, Any], key: KeyPath, value: Any) -> None:
    for part in key[:-1]:
        values = values.setdefault(part, {})
    values[key[-1]] = value
