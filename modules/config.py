"""The config: `load` turns a YAML file into the sections of `modules.sections`.

Nothing here imports torch, so a faulty file is answered at once.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from modules.config_faults import check_meaning
from modules.errors import ConfigError
from modules.legacy import keep, translate
from modules.masking import mask_secrets
from modules.schema import build_section
from modules.sections import Config
from modules.yaml_source import YamlSource, escape
from modules.yaml_text import dump

__all__ = ["Config", "ConfigError", "keep_translation", "load", "to_yaml"]


def load(path: str | Path, *overrides: str) -> Config:
    """Read a YAML file over the defaults, and `key.path=value` overrides over the file.

    Raises:
        ConfigError: lists every fault of schema, type and path that the file has.
    """
    source = YamlSource.from_file(Path(path))
    source.apply(translate(source, overrides, today=Config))
    source.resolve()
    source.spell_out("validation", "split")
    config: Config = build_section(Config, source.values, source)
    check_meaning(config, source)
    source.raise_if_faulty()
    if config.save.name is None:
        config = replace(config, save=replace(config.save, name=Path(path).stem))
    return config


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `load` reads back; secrets are `***`."""
    return dump(escape(mask_secrets(asdict(config))))


def keep_translation(path: str | Path, *overrides: str, check: bool = False) -> None:
    """Write beside a YAML in the original sd-trainer's keys what it means today, and log where."""
    keep(Path(path), overrides, today=Config, check=check)
