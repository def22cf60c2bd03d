"""Errors whose message is for the person; they are shown without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class ConfigError(ValueError):
    """What is wrong with a config, a dataset or a model, before training; exit status 2."""


class RunError(RuntimeError):
    """Why a run that has begun can't go on; exit status 1."""


def explained(where: str, action: Callable[[], Result]) -> Result:
    """Run `action`; what it finds wrong becomes one message that begins with `where`.

    Raises:
        ConfigError: `action` raised a ValueError or OSError.
    """
    try:
        return action()
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
