"""Errors whose message is for the person; they are shown without a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class ConfigError(ValueError):
    """What is wrong with a config, a dataset or a model, before training; exit status 2."""


class RunError(RuntimeError):
    """Why a run that has begun can't go on; exit status 1."""


class Interrupted(Exception):
    """A person has ended a run, which can go on; exit status 130, or 128 and the signal."""

    def __init__(self, message: str, *, signal: int | None = None):
        super().__init__(message)
        self.status = 130 if signal is None else 128 + signal


@contextmanager
def survived(what: str) -> Iterator[None]:
    """Let nothing that goes wrong inside end a run: it becomes a warning about `what`."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("%s: %s; training goes on", what, reason)


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
