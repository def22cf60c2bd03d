"""A job's part of the work, where several processes or machines share it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1; by default all of it.

    What belongs to it depends on names alone, so that no process has to know what others do.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read "2/4"; None is the whole.

        Raises:
            ValueError: it is something else.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(text))
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(f"shard: {text!r} is no part of a whole; write 1/4, 2/4, 3/4 or 4/4")
        return cls(number, count)

    @property
    def is_part(self) -> bool:
        """Whether there are others beside it."""
        return self.count > 1

    def owns(self, name: str) -> bool:
        """Whether what is called so is this shard's; each name is that of exactly one."""
        if not self.is_part:
            return True
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def file_beside(self, path: Path) -> Path:
        """The shard's own file beside `path`: index.2of4.jsonl; of the whole `path` itself."""
        if not self.is_part:
            return path
        return path.with_name(f"{path.stem}.{self.number}of{self.count}{path.suffix}")


def find_parts(path: Path) -> list[Path]:
    """The files that shards have written beside `path`, in the order of their changes."""
    pattern = re.compile(re.escape(path.stem) + r"\.\d+of\d+" + re.escape(path.suffix))
    dated = []
    for file in path.parent.glob(f"{path.stem}.*of*{path.suffix}"):
        if pattern.fullmatch(file.name):
            try:
                dated.append((file.stat().st_mtime_ns, file))
            except FileNotFoundError:
                continue  # another process has just taken it into `path`
    return [file for _, file in sorted(dated)]
