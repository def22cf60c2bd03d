"""Which of a tagger's tags make an image's caption, and how they are spelt."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocess.wd14_files import CHARACTER, RATING, Tag

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W_]{2}")  # emoticons have no two letters or digits side by side


@dataclass(frozen=True, kw_only=True)
class TagSettings:
    """What a person wants of the tags.

    Raises:
        ValueError: a threshold is out of range, or `exclude` isn't a list.
    """

    threshold: float
    """Least probability of a general tag."""
    character_threshold: float
    """Least probability of a character."""
    rating: bool
    """Whether the most probable rating stands first."""
    keep_underscores: bool
    exclude: Sequence[str]
    """Tags to leave out, with spaces or underscores."""

    def __post_init__(self) -> None:
        for name in ("threshold", "character_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not within 0 and 1")
        if isinstance(self.exclude, str):
            raise ValueError(f"exclude: {self.exclude!r} is not a list; write [{self.exclude}]")


class TagChoice:
    """Choose the tags of a caption from the probabilities that a tagger gives."""

    def __init__(self, tags: Sequence[Tag], settings: TagSettings) -> None:
        self._settings = settings
        self._texts = [_spell(tag.name, settings) for tag in tags]
        categories = np.array([tag.category for tag in tags])
        self._ratings = np.flatnonzero(categories == RATING)
        thresholds = np.where(
            categories == CHARACTER, settings.character_threshold, settings.threshold
        )
        self._thresholds = np.where(categories == RATING, np.inf, thresholds)
        excluded = {_normalise(tag) for tag in settings.exclude}
        names = [_normalise(tag.name) for tag in tags]
        self._is_excluded = np.array([name in excluded for name in names])
        unknown = sorted(excluded.difference(names))
        if unknown:
            logger.warning("exclude: the tagger has no tag %s", ", ".join(map(repr, unknown)))

    def choose(self, probabilities: np.ndarray) -> list[str]:
        """Return the tags of an image, the most probable first.

        Raises:
            ValueError: the values aren't the probabilities of the tags.
        """
        if len(probabilities) != len(self._texts):
            raise ValueError(
                f"the tagger gives {len(probabilities)} values for {len(self._texts)} tags; use "
                "the two files of one tagger"
            )
        if probabilities.min() < -1e-4 or probabilities.max() > 1 + 1e-4:
            raise ValueError(
                f"the tagger gives values of {probabilities.min():.3g} to "
                f"{probabilities.max():.3g}, which are no probabilities; use a WD14 tagger"
            )
        order = np.argsort(-probabilities, kind="stable")
        is_chosen = (probabilities >= self._thresholds) & ~self._is_excluded
        chosen = [int(i) for i in order if is_chosen[i]]
        if self._settings.rating and len(self._ratings):
            likeliest = self._ratings[probabilities[self._ratings].argmax()]
            if not self._is_excluded[likeliest]:
                chosen.insert(0, int(likeliest))
        return [self._texts[i] for i in chosen]


def _spell(name: str, settings: TagSettings) -> str:
    if settings.keep_underscores or not _WORD.search(name):
        return name
    return name.replace("_", " ")


def _normalise(tag: str) -> str:
    return tag.strip().replace("_", " ").casefold()
