"""Errors whose message is for the person; they are shown without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """What is wrong with a config, a dataset or a model, before training; exit status 2."""


class RunError(RuntimeError):
    """Why a run that has begun can't go on; exit status 1."""
