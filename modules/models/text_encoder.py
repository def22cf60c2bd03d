"""A text encoder with its tokenizer, and the tokens that networks add to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from modules.models.chunks import split_chunks
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
    length: int | None = None
    """Tokens of a prompt that the denoiser was trained with; None: as many as both can take."""
    chunks: int = 1
    """Of `max_length` tokens that a prompt is cut into."""
    added_tokens: dict[str, int] = field(default_factory=dict, init=False)
    """How many ids each added token stands for."""
    _extended: Any = field(default=None, init=False, repr=False)
    _pattern: re.Pattern[str] | None = field(default=None, init=False, repr=False)

    @property
    def max_length(self) -> int:
        """Tokens of a prompt, or of a chunk of it, start and end included."""
        if self.length is not None:
            return self.length
        positions = self.module.config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (B * chunks, max_length), padded and truncated."""
        return self._encode(captions)["input_ids"]

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (B * chunks, max_length), on the encoder's device."""
        return self.inputs(captions)["input_ids"]

    def inputs(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (B * chunks, max_length), on the encoder's device.

        The mask is 0 where a prompt is padded.
        """
        device = next(self.module.parameters()).device
        encoded = self._encode(captions)
        return {
            key: encoded[key].to(device, non_blocking=True)
            for key in ("input_ids", "attention_mask")
        }

    def side_by_side(self, states: Tensor) -> Tensor:
        """The states of all chunks of a prompt, (B * chunks, tokens, D), in one row of tokens."""
        return states.reshape(len(states) // self.chunks, -1, states.shape[-1])

    def token_count(self, caption: str) -> tuple[int, int]:
        """How many tokens a caption has, start and end not counted, and how many are read."""
        tokenizer = self._extended or self.tokenizer
        ids = tokenizer(self._spell_out(caption), add_special_tokens=False).input_ids
        length = self.max_length - tokenizer.num_special_tokens_to_add()
        if self.chunks == 1:
            return len(ids), min(len(ids), length)
        read = split_chunks(ids, length=length, comma=self._comma)[: self.chunks]
        return len(ids), sum(map(len, read))

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
        return f"{hashes[0]} {hashes[1]} {self.max_length} {self.chunks}"

    def _encode(self, captions: Sequence[str]) -> Any:
        tokenizer = self._extended or self.tokenizer
        if self.chunks > 1:
            return self._encode_chunks(tokenizer, captions)
        return tokenizer(
            [self._spell_out(caption) for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )

    def _encode_chunks(self, tokenizer: Any, captions: Sequence[str]) -> dict[str, Tensor]:
        """Each chunk with a start and an end of its own, all chunks of a caption in a row."""
        length = self.max_length - 2
        texts = [self._spell_out(caption) for caption in captions]
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        rows = []
        for ids in tokenizer(texts, add_special_tokens=False).input_ids:
            chunks = split_chunks(ids, length=length, comma=self._comma)[: self.chunks]
            chunks += [[] for _ in range(self.chunks - len(chunks))]
            rows += [[start, *chunk, end] for chunk in chunks]
        padding = [self.max_length - len(row) for row in rows]
        pad = tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor(
                [row + [pad] * rest for row, rest in zip(rows, padding, strict=True)]
            ),
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * rest for row, rest in zip(rows, padding, strict=True)]
            ),
        }

    @property
    def _comma(self) -> int | None:
        ids = self.token_ids(",")
        return ids[0] if len(ids) == 1 else None

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
