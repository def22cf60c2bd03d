"""The captions of a dataset's images: which files hold them, and what is trained on of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from modules.caption_text import CaptionProcessor
from modules.captions import CaptionFiles
from modules.dataset_files import list_names
from modules.repeats import folder_words
from modules.side_inputs import describe_missing
from modules.store import Store


class CaptionSet:
    """The captions of images, by their number; `prompt` stands for all of them.

    With `by_folder` an image without a caption file takes the words of its folder `10_sks dog`.
    What is random about one depends on (`seed`, epoch, number) only, not on workers or on a resume.
    A number behind the last is that of an image which comes again, and draws anew.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        *,
        process: CaptionProcessor,
        prompt: str | None = None,
        by_folder: bool = False,
        seed: int = 0,
    ):
        self.process = process
        self.prompt = prompt
        self._names = names
        self._by_folder = by_folder
        self._seed = seed
        self._files = None if prompt is not None else CaptionFiles(store, names)

    @property
    def missing(self) -> list[str]:
        """Names of images without a caption."""
        return [name for name in self._unwritten if not self._words(name)]

    @property
    def idle(self) -> list[str]:
        """Caption files that are no image's."""
        return [] if self._files is None else self._files.idle

    def find_missing(self) -> Iterator[str]:
        """Yield a fault if images have no caption."""
        if missing := self.missing:
            advice = "add captions/<name>.txt or .caption, or set allow_missing_captions: true"
            total = len(self._names)
            yield describe_missing("captions", missing, total=total, advice=advice)

    def draw(self, number: int, epoch: int) -> str:
        """The final caption of an image in an epoch."""
        # The last number keeps these draws apart from others that begin with the same seed.
        rng = np.random.default_rng([self._seed, epoch, number, 0xCA97])
        return self.process(self.read(number), rng)

    def whole(self, number: int) -> str:
        """An image's caption with nothing left to chance."""
        return self.process.whole(self.read(number))

    def read(self, number: int) -> list[str]:
        """An image's captions as they stand in its file; an empty one without a file."""
        if self._files is None:
            assert self.prompt is not None
            return [self.prompt]
        number %= len(self._names)
        return self._files.read(number) or [self._words(self._names[number])]

    def summary(self, epoch: int) -> list[str]:
        """How many there are, and three of an epoch's final ones."""
        total, lines = len(self._names), []
        if self.prompt is None:
            unwritten, missing = self._unwritten, self.missing
            found = f"captions: {total - len(unwritten)} of {total}"
            if words := len(unwritten) - len(missing):
                found += f"; {words} without a file take the words of their folder"
            lines.append(found + (f"; missing: {list_names(missing)}" if missing else ""))
        for number in dict.fromkeys((0, total // 2, total - 1)):
            caption = self.draw(number, epoch)
            there = caption or not any(self.read(number))
            dropped = "" if there else " (dropped in this epoch)"
            lines.append(f"caption of {self._names[number]}: {caption!r}{dropped}")
        return lines

    def files(self) -> Iterator[str]:
        """Yield the path of every caption file, within the dataset."""
        return iter(()) if self._files is None else self._files.files()

    def chances(self) -> list[str]:
        """What makes captions differ from time to time, but for dropping them whole."""
        return self.process.chances(map(self.read, range(len(self._names))))

    @property
    def _unwritten(self) -> list[str]:
        """Names of images without a caption file."""
        return [] if self._files is None else self._files.missing

    def _words(self, name: str) -> str:
        return folder_words(name) if self._by_folder else ""
