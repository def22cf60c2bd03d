"""Ways to store a frozen weight in 8 or 4 bits for each number, with scales beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from modules.component import resolve


class WeightStorage(Protocol):
    """Turns a weight into what is stored of it, and back.

    `codes` and `scale` may be of any dtype and shape; float32 scales stay float32.
    """

    name: str

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scale of a weight (out, in[, k, k])."""

    def decode(self, codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The weight again, of `shape` and in `dtype`, but for the rounding."""


class Int8:
    """127 steps to each side of 0, as far as the channel's largest number.

    Scales are rounded up to numbers that bfloat16 has, so that a product in it is rounded once.
    """

    name = "int8"
    _LARGEST = 127

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = _largest(weight) / self._LARGEST
        scale = (scale * (1 + 2**-8)).to(torch.bfloat16).float()
        codes = weight.float().div(scale).round_().to(torch.int8)
        return codes, scale

    def decode(self, codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return codes.to(dtype).mul_(scale.to(dtype))


class Float8:
    """E4M3 (Micikevicius et al. 2022, arXiv:2209.05433): 3 bits behind the leading one.

    Scales are powers of two, so that a product is exact. The codes are stored as plain bytes:
    a change of a module's floating-point dtype doesn't touch them.
    """

    name = "fp8"

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        most = torch.finfo(torch.float8_e4m3fn).max
        scale = (_largest(weight) / most).log2().ceil_().exp2_()
        codes = weight.float().div(scale).to(torch.float8_e4m3fn)
        return codes.view(torch.uint8), scale

    def decode(self, codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return codes.view(torch.float8_e4m3fn).to(dtype).mul_(scale.to(dtype))


class NormalFloat4:
    """4 bits, 16 steps as a normal distribution has them (Dettmers et al. 2023, arXiv:2305.14314).

    bitsandbytes computes it; 64 numbers in a row share a scale.
    """

    name = "nf4"
    _BLOCK = 64

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight.float().contiguous(), blocksize=self._BLOCK, quant_type="nf4"
        )
        return codes, state.absmax

    def decode(self, codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        # In one row: on a processor 0.50.2 errs in rows that are no multiple of the block.
        row = torch.Size([shape.numel()])
        state = QuantState(scale, shape=row, blocksize=self._BLOCK, quant_type="nf4", dtype=dtype)
        return dequantize_4bit(codes, state).view(shape)


def storage_packages(name: str | None) -> list[str]:
    """The packages that weights are stored by, beside torch."""
    return ["bitsandbytes"] if name == NormalFloat4.name else []


def storage_faults(name: str | None) -> list[str]:
    """Why weights can't be stored so here, if they can't."""
    if not storage_packages(name):
        return []
    try:
        resolve("bitsandbytes.functional.quantize_4bit")
    except ValueError as error:
        return [f"model.quantize: {name} is computed by bitsandbytes: {error}"]
    return []


def _largest(weight: Tensor) -> Tensor:
    """The largest number of each output channel, (out, 1[, 1, 1]) in float32, never 0."""
    others = list(range(1, weight.dim()))
    return weight.float().abs().amax(others, keepdim=True).clamp_(min=1e-12)


_KINDS: Sequence[WeightStorage] = (Int8(), Float8(), NormalFloat4())
STORAGES: Mapping[str, WeightStorage] = {each.name: each for each in _KINDS}
"""By the name that `model.quantize` has for them."""
