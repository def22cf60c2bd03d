"""What becomes of a caption's text before training: tags, wildcards, what is left to chance."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

TRIGGER = "[trigger]"
"""Stands in captions for the trigger word."""

_CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class CaptionProcessor:
    """Turn an image's captions into the text that is trained on.

    Raises:
        ValueError: an argument is out of range.
    """

    prefix: str = ""
    """Put before every caption as it stands, e.g. `"anime, "`; never shuffled."""
    suffix: str = ""
    """Put behind every caption as it stands."""
    trigger_word: str = ""
    """Takes the place of `[trigger]`; a caption that has neither gets it in front."""
    shuffle: bool = False
    """Put the tags in a new order each time."""
    keep_tokens: int = 0
    """So many first tags are neither moved nor dropped."""
    keep_tokens_separator: str = ""
    """What stands before its first occurrence in a caption, and behind a second one, is neither
    moved nor dropped; such as `|||`, which itself is taken out."""
    tag_separator: str = ","
    """Stands between tags."""
    tag_dropout: float = 0.0
    """Probability of leaving out a tag."""
    caption_dropout: float = 0.0
    """Probability of an empty caption, without prefix, as classifier-free guidance wants."""
    wildcards: bool = False
    """Choose one of `{red|blue}` each time."""

    def __post_init__(self) -> None:
        for name in ("caption_dropout", "tag_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not within 0 and 1")
        if self.keep_tokens < 0:
            raise ValueError(f"keep_tokens: {self.keep_tokens} is negative; use 0 or more")
        if not self.tag_separator:
            raise ValueError("tag_separator: is empty; commas are usual")
        if self.keep_tokens and self.keep_tokens_separator:
            raise ValueError("keep_tokens: is another way than keep_tokens_separator; keep one")

    def __call__(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """One of an image's captions, as it is trained on this time."""
        if rng.random() < self.caption_dropout:
            return ""
        caption = captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
        if self.wildcards:
            caption = _choose(caption, lambda count: int(rng.integers(count)))
        return self._finish(caption, partial(self._rearrange, rng))

    def whole(self, captions: Sequence[str]) -> str:
        """The first of an image's captions with nothing left to chance: for samples and caches."""
        caption = _choose(captions[0], lambda _: 0) if self.wildcards else captions[0]
        return self._finish(caption, list)

    def chances(self, captions: Sequence[Sequence[str]]) -> list[str]:
        """What makes the captions of these images differ from time to time, but for their dropout.

        Each is the name of an argument, or `several captions`.
        """
        found = []
        if any(len(each) > 1 for each in captions):
            found.append("several captions")
        if self.wildcards and any(_CHOICE.search(text) for each in captions for text in each):
            found.append("wildcards")
        flexible = (len(self._parts(text)[1]) for each in captions for text in each)
        most = max(flexible, default=0) if self.shuffle or self.tag_dropout else 0
        if self.shuffle and most > 1:
            found.append("shuffle_caption")
        if self.tag_dropout and most:
            found.append("tag_dropout")
        return found

    def _finish(self, caption: str, arrange: Callable[[list[str]], list[str]]) -> str:
        """Prefix, caption and suffix; a caption whose tags may not move stays as it was written."""
        caption = caption.replace(TRIGGER, self.trigger_word) if self.trigger_word else caption
        lead = [self.trigger_word] if self.trigger_word not in caption else []
        if self.shuffle or self.tag_dropout or self._is_divided(caption):
            before, tags, behind = self._parts(caption)
            parts = [*lead, *before, *arrange(tags), *behind]
        else:
            parts = [*lead, *([caption] if caption else [])]
        return self.prefix + self._glue.join(parts) + self.suffix

    def _rearrange(self, rng: np.random.Generator, tags: list[str]) -> list[str]:
        if self.tag_dropout:
            tags = [tag for tag in tags if rng.random() >= self.tag_dropout]
        return [tags[place] for place in rng.permutation(len(tags))] if self.shuffle else tags

    def _parts(self, caption: str) -> tuple[list[str], list[str], list[str]]:
        """Tags that stay in front, those that move or drop, and those that stay behind."""
        if self._is_divided(caption):
            before, between, behind = [*caption.split(self.keep_tokens_separator, 2), ""][:3]
            return self._tags(before), self._tags(between), self._tags(behind)
        tags = self._tags(caption)
        return tags[: self.keep_tokens], tags[self.keep_tokens :], []

    def _is_divided(self, caption: str) -> bool:
        return bool(self.keep_tokens_separator) and self.keep_tokens_separator in caption

    def _tags(self, text: str) -> list[str]:
        return [tag for tag in map(str.strip, text.split(self.tag_separator)) if tag]

    @property
    def _glue(self) -> str:
        return self.tag_separator if self.tag_separator.isspace() else f"{self.tag_separator} "


def _choose(caption: str, choose: Callable[[int], int]) -> str:
    """Put one of its options in the place of each `{a|b}`, innermost first."""
    while found := _CHOICE.search(caption):
        options = found[1].split("|")
        caption = caption[: found.start()] + options[choose(len(options))] + caption[found.end() :]
    return caption
