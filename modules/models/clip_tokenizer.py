"""CLIP's tokenizer without a download, out of the merges in `clip_merges.txt.gz`.

Every Stable Diffusion has it; a few settings, as the token that pads, differ between text encoders.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_MERGES = Path(__file__).parent / "clip_merges.txt.gz"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def make_tokenizer(cls: Any, settings: Mapping[str, Any]) -> Any:
    """A CLIPTokenizer with `model_max_length` and `pad_token` as `settings` say.

    They may bring a vocabulary of their own, as `tokenizer_settings` writes it.
    """
    given = dict(settings)
    tokens, merges = given.pop("tokens", None), given.pop("merges", None)
    if tokens is None:
        tokens, merges = clip_vocabulary()
    vocab = {token: number for number, token in enumerate(tokens)}
    return cls(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges], **given)


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """What `make_tokenizer` makes an equal tokenizer of: CLIP's own vocabulary isn't written."""
    settings = {
        "model_max_length": tokenizer.model_max_length,
        "pad_token": tokenizer.pad_token,
    }
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if (tokens, merges) == clip_vocabulary():
        return settings
    return {**settings, "tokens": tokens, "merges": merges}


@cache
def clip_vocabulary() -> tuple[Sequence[str], Sequence[str]]:
    """CLIP's 49,408 tokens by their ids, and the merges that make them."""
    merges = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return [*tokens, *_SPECIAL], merges


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the order of their ids: the printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
