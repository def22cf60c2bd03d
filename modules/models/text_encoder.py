"""A text encoder with its tokenizer, and the tokens that networks add to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken
from torch import Tensor

from modules.models.fingerprint import hash_tokenizer, hash_weights

_FIRST_STAND_IN = 0xF0000  # of a private-use plane of Unicode: no caption has it


@dataclass
class TextEncoder:
    """A text encoder and the tokenizer it was trained with.

    Tokens that networks add live in a copy of the tokenizer, which itself stays as the checkpoint
    has it.
    """

    module: Any
    tokenizer: Any
    added_tokens: dict[str, int] = field(default_factory=dict, init=False)
    """How many ids each added token stands for."""
    _extended: Any = field(default=None, init=False, repr=False)
    _pattern: re.Pattern[str] | None = field(default=None, init=False, repr=False)

    @property
    def max_length(self) -> int:
        """Tokens of a prompt, start and end included."""
        positions = self.module.config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (B, max_length), padded and truncated."""
        tokenizer = self._extended or self.tokenizer
        encoded = tokenizer(
            [self._spell_out(caption) for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return encoded.input_ids

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (B, max_length), on the encoder's device."""
        device = next(self.module.parameters()).device
        return self.tokenize(captions).to(device, non_blocking=True)

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text by the checkpoint's own tokens, without start and end."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def add_token(self, token: str, count: int) -> None:
        """Let `token` in captions stand for `count` ids beyond the vocabulary.

        Upper and lower case are one, as for CLIP. A token that begins or ends with a letter is not
        found within a longer word.

        Raises:
            ValueError: there is such a token already.
        """
        if token.lower() in (other.lower() for other in self.added_tokens):
            raise ValueError(f"{token!r} is a token of another network already; choose another")
        if len(self.token_ids(token)) == 1:
            raise ValueError(
                f"{token!r} is a token of the text encoder already; choose one that it doesn't "
                f"have, such as '<{token}>'"
            )
        self.added_tokens[token] = count
        self._extend()

    def remove_token(self, token: str) -> None:
        """Take an added token away; ids of others may change."""
        self.added_tokens.pop(token, None)
        self._extend()

    def ids_of(self, token: str) -> range:
        """The ids that an added token stands for now."""
        count = self.added_tokens[token]
        first = self._extended.convert_tokens_to_ids(self._stand_ins()[token.lower()][0])
        return range(first, first + count)

    def fingerprint(self) -> str:
        """Name all that its outputs depend on beside the captions."""
        hashes = hash_weights(self.module), hash_tokenizer(self.tokenizer)
        return f"{hashes[0]} {hashes[1]} {self.max_length}"

    def _extend(self) -> None:
        """Make the tokenizer of prompts, and the pattern that finds added tokens in them."""
        self._extended = self._pattern = None
        if not self.added_tokens:
            return
        letters = self._stand_ins()
        self._extended = copy.deepcopy(self.tokenizer)
        new = [AddedToken(letter, normalized=False) for letter in "".join(letters.values())]
        self._extended.add_tokens(new)
        longest_first = sorted(letters, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_whole, longest_first)), re.IGNORECASE)

    def _stand_ins(self) -> dict[str, str]:
        """A letter for each id of each added token, by the token in lower case."""
        letters, first = {}, _FIRST_STAND_IN
        for token, count in self.added_tokens.items():
            letters[token.lower()] = "".join(map(chr, range(first, first + count)))
            first += count
        return letters

    def _spell_out(self, caption: str) -> str:
        """Write a caption with the letters that stand for ids in the place of added tokens."""
        if self._pattern is None:
            return caption
        letters = self._stand_ins()
        return self._pattern.sub(lambda found: letters[found[0].lower()], caption)


def _whole(token: str) -> str:
    """A pattern for a token that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.search(r"\w$", token) else ""
    return before + re.escape(token) + after
