"""Keys, tokens and passwords taken out of a config before it is written into files for others."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

MASK = "***"

_SECRET = re.compile(
    r"(^|_)(api_?key|access_?key(_id)?|secret(_key|_access_key)?|private_?key|password|passwd"
    r"|passphrase|credentials?|authorization|token)$"
)
_KEY = re.compile(r"(^|_)key$")  # of a dictionary, perhaps; only if its value looks like one
_LOOKS_SECRET = re.compile(r"[A-Za-z0-9_\-+/=.]{16,}")
_KNOWN = re.compile(r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # s3://key:secret@bucket


def mask_secrets(values: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Return a config's plain values with `***` for what looks like a secret.

    That is text under a key such as api_key or password, the value of an environment variable of
    such a name (HF_TOKEN, WANDB_API_KEY), a token of a known form, and what stands before the @ of
    an address. Everything else stays as it was written, paths too.
    """
    given = os.environ if environment is None else environment
    known = [v for k, v in given.items() if _SECRET.search(_plain(k)) and len(v) >= 8]
    return _mask(values, "", known)


def without_credentials(address: str) -> str:
    """An address with `***` for what stands before its @."""
    return _IN_ADDRESS.sub(MASK, address)


def _mask(value: Any, key: str, known: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        are_words = key == "tokens"  # of textual inversion: the keys are names, my-token among them
        return {k: _mask(each, "" if are_words else str(k), known) for k, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(each, key, known) for each in value]
    if not isinstance(value, str) or not value:
        return value
    name = _plain(key)
    if _SECRET.search(name) or (_KEY.search(name) and _LOOKS_SECRET.fullmatch(value)):
        return MASK
    for secret in known:
        value = value.replace(secret, MASK)
    return without_credentials(_KNOWN.sub(MASK, value))


def _plain(key: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_")
