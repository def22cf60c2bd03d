"""Files that are verified before they take their name, all of a save at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from safetensors import SafetensorError

from modules.errors import RunError
from modules.files import replacing, replacing_directory
from modules.verification import Verified

logger = logging.getLogger(__name__)

LOSS = 0.01
"""Relative error of a file above which it is said: fp16 keeps 3 digits, bf16 2."""


class VerifiedFiles:
    """A context in which files are written under temporary names and verified.

    At its end all take their names; if anything in it fails none does, and what had these names
    stays as it was.
    """

    def __init__(self, dtype: torch.dtype):
        self.written: dict[Path, Verified | None] = {}
        self._dtype = dtype
        self._renamed = ExitStack()

    def __enter__(self) -> Self:
        self._renamed.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._renamed.__exit__(*error)

    def write(
        self,
        path: Path,
        source: Any,
        *,
        is_directory: bool,
        kind: str = "",
        beside: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        """Let `source` save a file, or a directory with the texts `beside` in it, and verify it.

        Its methods are `save` and `verify`, or `save_<kind>` and `verify_<kind>`. A class that has
        a way to save of its own and none to verify is not verified.

        Raises:
            RunError: what was written is not what is live; names the file and the key.
        """
        save, verify = (f"{verb}_{kind}" if kind else verb for verb in ("save", "verify"))
        new = replacing_directory(path) if is_directory else replacing(path)
        temporary = self._renamed.enter_context(new)
        getattr(source, save)(temporary, dtype=self._dtype, **options)
        for name, text in beside.items():
            (temporary / name).write_text(text, encoding="utf-8")
        verified = None
        if _is_verified(type(source), save, verify):
            verified = self._verify(path, temporary, getattr(source, verify))
        self.written[path] = verified

    def _verify(self, path: Path, temporary: Path, verify: Any) -> Verified:
        try:
            return verify(temporary, dtype=self._dtype)
        except (ValueError, OSError, KeyError, SafetensorError) as error:
            raise RunError(
                f"{path}: {error}; the file was read again after writing and is not what was "
                "trained, so it was not kept, and what was saved before stays"
            ) from error


def tell(path: Path, verified: Verified | None) -> None:
    """Log what was found out about a file; None if it could not be verified."""
    if verified is None:
        logger.info("unverified: its class has no verify beside its save")
        return
    logger.info("%s", verified)
    if verified.max_error > LOSS:
        share = 100 * verified.max_error
        logger.warning(
            "%s: rounding changes up to %.0f %% of a layer; save.dtype: fp32 keeps all", path, share
        )


def _is_verified(source: type, save: str, verify: str) -> bool:
    """Whether the class that says how to save says how to verify, or one derived from it does."""
    order = source.__mro__
    saving = next((cls for cls in order if save in vars(cls)), None)
    verifying = next((cls for cls in order if verify in vars(cls)), None)
    return saving is not None and verifying is not None and issubclass(verifying, saving)
