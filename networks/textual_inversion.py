"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new tokens with learned embeddings.

A side-car: the learned rows live in the network, and hooks put them where a prompt has a new token.
The text encoder's own matrix and its tokenizer stay as they are. Files are those of AUTOMATIC1111's
embeddings, which ComfyUI and diffusers read too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.verification import Comparison, Verified, check_names
from networks.conditioner import Conditioner
from networks.embedding_files import (
    check_encoders,
    file_name,
    find_embedding,
    named_rows,
    read_embedding,
    write_embedding,
)
from networks.key_rules import EMBEDDING_KEYS, check_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """How a new token begins."""

    init: str = ""
    """Words that it begins as."""
    vectors: int | None = None
    """How many vectors it has; null takes as many as `init` has tokens."""


class TextualInversion(Conditioner):
    """New tokens for prompts, each of one or more vectors, in every text encoder.

    With fewer vectors than `init` has tokens, each begins as the mean of its share of them; with
    more, tokens are repeated in their order. Written is a directory with one file for each token;
    `resume` takes such a directory, or with one token its file.

    Args:
        tokens: by how they stand in captions: `{<cat-toy>: {init: cat, vectors: 2}}`, or
            `{<cat-toy>: cat}`.
    """

    file_kind: ClassVar[str] = "textual-inversion"
    suffixes: ClassVar[Sequence[str]] = ("",)  # a directory

    def __init__(self, *, tokens: Mapping[str, Token | str]):
        super().__init__()
        self.tokens = {
            name: Token(init=token) if isinstance(token, str) else token
            for name, token in tokens.items()
        }
        self._files = {token: file_name(token) for token in self.tokens}
        self._check()
        self.embeddings = nn.ParameterList()  # one for each text encoder, all tokens in a row
        self._counts: dict[str, int] = {}
        self._encoders: list[Any] = []
        self._hooks: list[Any] = []
        self._is_checked = False

    def attach(self, model: Any) -> None:
        """Add the tokens to every text encoder of `model`, at first as their `init`.

        Raises:
            ValueError: a text encoder has such a token, or `init` has no words.
        """
        check_encoders(len(model.text_encoders))
        self._encoders = list(model.text_encoders)
        if not self.embeddings:
            rows = [self._first_rows(encoder) for encoder in self._encoders]
            self.embeddings = nn.ParameterList([nn.Parameter(each) for each in rows])
        self._hook_up()

    def detach(self) -> None:
        """Take the tokens away again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for encoder in self._encoders:
            for token in self._counts:
                encoder.remove_token(token)

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Return the inputs as they are: the tokens work inside of the text encoders."""
        return inputs

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {f"text_encoders.{number}": [rows] for number, rows in enumerate(self.embeddings)}

    def check_dataset(self, dataset: Any) -> None:
        """Warn of tokens that no caption has: they would learn nothing.

        Asked is the first dataset only; images of a class beside it are rightly without them.
        """
        if self._is_checked or not hasattr(dataset, "whole_caption"):
            return
        self._is_checked = True
        missing = {token: token.lower() for token in self.tokens}
        for index in range(len(dataset)):
            caption = dataset.whole_caption(index).lower()
            missing = {token: name for token, name in missing.items() if name not in caption}
            if not missing:
                return
        logger.warning(
            "no caption of the dataset has %s, which will learn nothing; write it into the "
            "captions, or into dataset.args.prefix or prompt",
            " or ".join(missing),
        )

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write a directory with a file for each token, named as readers will call it."""
        path.mkdir(parents=True, exist_ok=True)
        for token, rows in self._rows_by_token().items():
            file = path / self._file_of(token)
            write_embedding(file, rows, dtype=dtype, metadata={**metadata, "ti_token": token})

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written directory has a file for each token, with its vectors."""
        comparison, keys = Comparison(), 0
        files = [file.name for file in path.glob("*.safetensors")]
        check_names(files, [self._file_of(token) for token in self._counts])
        for token, rows in self._rows_by_token().items():
            file, tensors = self._file_of(token), named_rows(rows)
            check_keys(tensors, EMBEDDING_KEYS)
            keys += comparison.add_file(path / file, tensors, dtype=dtype, where=f"{file}: ")
        return comparison.result(keys=keys)

    def load(self, path: Path) -> None:
        """Take over the vectors of files, and how many there are.

        Raises:
            ValueError: a token's file is missing, no embedding, or one for another text encoder.
        """
        if len(self.tokens) > 1 and not path.is_dir():
            raise ValueError(f"{path}: is one file for {len(self.tokens)} tokens; name a directory")
        widths = [table.shape[1] for table in self.embeddings]
        files = {token: find_embedding(path, name) for token, name in self._files.items()}
        found = {token: read_embedding(file, widths) for token, file in files.items()}
        for token, rows in found.items():
            if len(rows[0]) != self._counts[token]:
                logger.warning("%s: has %d vectors, which are taken", files[token], len(rows[0]))
        self.detach()
        self._counts = {token: len(rows[0]) for token, rows in found.items()}
        for number, before in enumerate(self.embeddings):
            table = torch.cat([rows[number].float() for rows in found.values()])
            self.embeddings[number] = nn.Parameter(table.to(before.device))
        self._hook_up()

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: the base's family."""
        return model.base_version()

    def _check(self) -> None:
        if not self.tokens:
            raise ValueError("tokens: is empty; name one, such as {<cat-toy>: cat}")
        taken: dict[str, str] = {}
        for name, token in self.tokens.items():
            if not name or re.search(r"[\s,]", name):
                raise ValueError(f"tokens: {name!r} has spaces or commas; write it as one word")
            if not self._files[name]:
                raise ValueError(f"tokens: {name!r} has no letter that could name its file")
            other = taken.setdefault(self._files[name].lower(), name)
            if other != name:
                raise ValueError(f"tokens: {other!r} and {name!r} would be written to one file")
            if not token.init.strip():
                raise ValueError(f"tokens.{name}.init: is empty; name a word for what it shows")
            if token.vectors is not None and token.vectors < 1:
                raise ValueError(f"tokens.{name}.vectors: {token.vectors} is less than 1")

    def _file_of(self, token: str) -> str:
        return f"{self._files[token]}.safetensors"

    def _rows_by_token(self) -> dict[str, list[Tensor]]:
        """A token's vectors for each text encoder."""
        split = [rows.split(list(self._counts.values())) for rows in self.embeddings]
        return {token: rows for token, *rows in zip(self._counts, *split, strict=True)}

    def _first_rows(self, encoder: Any) -> Tensor:
        """Embeddings that the tokens begin as, (vectors of all, width)."""
        matrix = encoder.module.get_input_embeddings().weight.detach()
        rows = []
        for name, token in self.tokens.items():
            ids = encoder.token_ids(token.init)
            count = self._counts.setdefault(name, token.vectors or len(ids))
            rows += [matrix[part].float().mean(0) for part in shares(ids, count)]
        return torch.stack(rows)

    def _hook_up(self) -> None:
        for number, encoder in enumerate(self._encoders):
            for token, count in self._counts.items():
                encoder.add_token(token, count)
            take_out, put_in = self._make_hooks(number, encoder)
            self._hooks.append(encoder.module.register_forward_pre_hook(take_out, with_kwargs=True))
            matrix = encoder.module.get_input_embeddings().weight
            for layer in encoder.module.modules():  # T5 has two with one matrix, and calls one
                if isinstance(layer, nn.Embedding) and layer.weight is matrix:
                    self._hooks.append(layer.register_forward_hook(put_in))

    def _make_hooks(self, number: int, encoder: Any) -> tuple[Callable, Callable]:
        """One hook for the encoder and one for its embedding layer.

        The first takes the new ids out, so that the encoder sees its own alone: CLIP with an old
        config looks for the end of a prompt at the greatest id. The second puts the learned rows
        in. They take part in every prompt, so that each batch gives them a gradient, if only zeros.
        """
        places: list[Tensor] = []

        def take_out(_encoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            rows, start = torch.full_like(ids, -1), 0
            for token, count in self._counts.items():
                offset = ids - encoder.ids_of(token)[0]
                rows = torch.where((offset >= 0) & (offset < count), offset + start, rows)
                start += count
            places[:] = [rows]
            ids = ids.masked_fill(rows >= 0, 0)
            if "input_ids" in kwargs:
                return args, {**kwargs, "input_ids": ids}
            return (ids, *args[1:]), kwargs

        def put_in(_embedding: nn.Module, _args: tuple, output: Tensor) -> Tensor:
            if not places:
                return output
            rows = places.pop().view(output.shape[:-1])  # (B, tokens)
            learned = F.embedding(rows.clamp(min=0), self.embeddings[number])
            return torch.where((rows >= 0)[..., None], learned.to(output.dtype), output)

        return take_out, put_in


def shares(items: list[int], count: int) -> list[list[int]]:
    """Split items into `count` runs; where there are fewer items, each stands in several."""
    starts = [number * len(items) // count for number in range(count + 1)]
    return [items[start : max(end, start + 1)] for start, end in pairwise(starts)]
