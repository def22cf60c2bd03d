"""A text encoder with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modules.models.fingerprint import hash_tokenizer, hash_weights


@dataclass
class TextEncoder:
    """A text encoder and the tokenizer it was trained with."""

    module: Any
    tokenizer: Any

    @property
    def max_length(self) -> int:
        """Tokens of a prompt, start and end included."""
        positions = self.module.config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (B, max_length), padded and truncated."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return encoded.input_ids

    def fingerprint(self) -> str:
        """Name all that its outputs depend on beside the captions."""
        hashes = hash_weights(self.module), hash_tokenizer(self.tokenizer)
        return f"{hashes[0]} {hashes[1]} {self.max_length}"
