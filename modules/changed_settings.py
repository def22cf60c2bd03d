"""What a config says otherwise than the defaults: the lines in which a run shows its settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from omegaconf import MISSING as REQUIRED

from modules.masking import mask_secrets
from modules.sections import Config
from modules.value_words import show

logger = logging.getLogger(__name__)


def show_changed(config: Config) -> None:
    """Log what differs from the defaults, a line for each section."""
    for line in changed_settings(config):
        logger.info("settings   %s", line)


def changed_settings(config: Config) -> list[str]:
    """What differs from the defaults, by section: `train: batch_size 2 (default 1), ...`.

    Secrets are `***`. A value without a default, as a path, stands alone.
    """
    masked = mask_secrets(asdict(config))
    lines = []
    for field in fields(config):
        changes = list(_changes(getattr(config, field.name), masked[field.name], field))
        if changes:
            lines.append(f"{field.name}: {', '.join(changes)}")
    return lines


def _changes(value: Any, masked: Any, field: Any, path: str = "") -> Iterator[str]:
    """Walk a value and what may be shown of it; `field` has the default."""
    if is_dataclass(value):
        for inner in fields(value):
            name = f"{path}.{inner.name}" if path else inner.name
            yield from _changes(getattr(value, inner.name), masked[inner.name], inner, name)
    elif isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _changes(each, masked[key], None, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(is_dataclass(each) for each in value):
        for number, each in enumerate(value):
            yield from _changes(each, masked[number], None, f"{path}.{number}".lstrip("."))
    else:
        default = _default_of(field)
        if value != default:
            known = "" if default in (MISSING, REQUIRED) else f" (default {_as_yaml(default)})"
            yield f"{path} {_as_yaml(masked)}{known}".lstrip()


def _default_of(field: Any) -> Any:
    if field is None:
        return MISSING
    return field.default if field.default_factory is MISSING else field.default_factory()


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) and value.isprintable() and value else show(value)
