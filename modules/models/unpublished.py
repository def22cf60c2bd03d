"""Configs of a model's pieces as far as they aren't those published for its kind.

A single file has no place for configs; one that we write of a model of another size brings the
differences in its metadata.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler

from modules.models.clip_tokenizer import tokenizer_settings
from modules.models.layouts import Layout, published_config

CONFIGS_KEY = "sd_trainer.configs"
_SCHEDULE = ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "trained_betas")
_OF_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")


def unpublished_configs(
    pieces: Mapping[str, Any], scheduler: Mapping[str, Any], layout: Layout
) -> dict[str, dict[str, Any]]:
    """The differences by piece; those that have none are left out."""
    given = {"scheduler": {key: scheduler[key] for key in _SCHEDULE if key in scheduler}}
    usual: dict[str, Mapping[str, Any]] = {"scheduler": _defaults(DDPMScheduler)}
    for name, piece in pieces.items():
        if name.startswith("tokenizer"):
            given[name], usual[name] = tokenizer_settings(piece), {}
        elif hasattr(piece.config, "to_dict"):
            given[name], usual[name] = piece.config.to_dict(), type(piece.config)().to_dict()
        else:
            given[name], usual[name] = dict(piece.config), _defaults(type(piece))
    found = {}
    for name, config in given.items():
        expected = _plain({**usual[name], **published_config(layout, name)})
        differing = {
            key: value
            for key, value in _plain(config).items()
            if key not in _OF_THE_FILE and value != expected.get(key)
        }
        if differing:
            found[name] = differing
    return found


def own_configs(metadata: Mapping[str, str], path: str) -> dict[str, dict[str, Any]]:
    """What `unpublished_configs` gave when a file was written.

    Raises:
        ValueError: the metadata can't be read.
    """
    try:
        configs = json.loads(metadata.get(CONFIGS_KEY, "{}"))
        return {str(name): dict(config) for name, config in configs.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: its metadata {CONFIGS_KEY} can't be read ({error})") from error


def _defaults(cls: Any) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it comes back from a file, without the library's own marks."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(own))
