"""The frozen weights of one block, in the machine's memory and at times on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ALIGNED = 256  # bytes: any dtype may begin there, and kernels read whole lines


class RestingBlock:
    """A block's weights: in the machine's memory, and at times in a storage on the device.

    Where they rest they can be read, there; a move of the whole module passes the block by.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.block, self._device = block, device
        self._parameters = list(block.parameters())
        self.size = size_of(block)
        host = torch.empty(self.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._host, self._at_rest = host, self._split(host)
        for parameter, own in zip(self._parameters, self._at_rest, strict=True):
            own.copy_(parameter.data)
            parameter.data = own
        self._room: Tensor | None = None  # on the device, the same storage from the first time on
        self._in_use: list[Tensor] = []
        for part in block.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.to(device)
        vars(block)["_apply"] = lambda fn, recurse=True: block

    @property
    def resident_bytes(self) -> int:
        """What the weights take of the device now."""
        return 0 if self._room is None else self._room.untyped_storage().nbytes()

    def fetch(self) -> None:
        """Copy the weights to the device, in the current stream; memory is there for it already."""
        assert self._room is not None
        self._room.copy_(self._host, non_blocking=True)

    def make_room(self) -> None:
        """Take the memory for the weights on the device."""
        if self._room is None:
            self._room = torch.empty(self.size, dtype=torch.uint8, device=self._device)
            self._in_use = self._split(self._room)
        self._room.untyped_storage().resize_(self.size)

    def use(self) -> None:
        """Compute with the weights on the device."""
        for parameter, own in zip(self._parameters, self._in_use, strict=True):
            parameter.data = own

    def rest(self) -> None:
        """Give the memory on the device back."""
        for parameter, own in zip(self._parameters, self._at_rest, strict=True):
            parameter.data = own
        assert self._room is not None
        self._room.untyped_storage().resize_(0)

    def _split(self, memory: Tensor) -> list[Tensor]:
        """A piece of the memory for each parameter, in its dtype and layout."""
        pieces = memory.split([_padded(p) for p in self._parameters])
        return [
            piece[: p.nbytes].view(p.dtype).as_strided(p.shape, p.stride())
            for piece, p in zip(pieces, self._parameters, strict=True)
        ]


def size_of(block: nn.Module) -> int:
    """Bytes of a block's weights in one piece of memory."""
    return sum(_padded(parameter) for parameter in block.parameters())


def _padded(parameter: Tensor) -> int:
    return -(-parameter.nbytes // _ALIGNED) * _ALIGNED
