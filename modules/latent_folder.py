"""A folder of cached latents: single files, and packed ones beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from modules.dataset_files import parse_array, parse_shape
from modules.packed_latents import PackedLatents
from modules.store import Store

_HEADER = 4096  # bytes, more than that of any array


class LatentFolder:
    """The latents of images in `name`/<image>.npy, or packed in `name`_packed/.

    Where an image has both, the single file counts: it is newer. `maker` is the script that makes
    them, for messages.
    """

    def __init__(self, store: Store, name: str, names: Sequence[str], *, maker: str) -> None:
        self.name = name
        self.maker = maker
        self._store = store
        self._names = names
        self._packed = PackedLatents(store, name, names)
        single = store.files_by_name(name, (".npy",))
        self._packed.leave_out(single)
        self.missing = [n for n in names if n not in single and n not in self._packed]
        """Images without latents."""

    def is_packed(self, name: str) -> bool:
        """Say whether an image's latents are packed: then their shape is known."""
        return name in self._packed

    def read(self, name: str) -> Tensor:
        """Return an image's latents, (C, h, w), as float32.

        Raises:
            ValueError: they can't be read; names the file.
        """
        if name in self._packed:
            return torch.from_numpy(self._packed.read(name).astype(np.float32))
        return parse_array(self._read_file(name), f"{self._store}/{self.file(name)}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an image's latents, of a single file by its header."""
        if name in self._packed:
            return self._packed.shape(name)
        return parse_shape(self._read_file(name, _HEADER), f"{self._store}/{self.file(name)}")

    def file(self, name: str) -> str:
        """Return the file of an image's latents, and of a packed one which it is."""
        if name in self._packed:
            return f"{self._packed.file(name)}, {name}"
        return f"{self.name}/{name}.npy"

    def files(self) -> Iterator[str]:
        """Yield the path of every file that is read, of packed latents once."""
        yield from self._packed.files()
        single = (name for name in self._names if name not in self._packed)
        yield from (self.file(name) for name in single)

    def _read_file(self, name: str, end: int | None = None) -> bytes:
        file = self.file(name)
        try:
            return self._store.read(file, 0, end)
        except OSError as error:
            raise ValueError(f"{self._store}/{file}: can't be read ({error})") from error
