"""Weights as their file will have them, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def rounded(parameters: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[None]:
    """Let parameters hold what is left of them once they are written in `dtype`, and then restore.

    They come back bit for bit, whatever happens meanwhile; None leaves them alone. Costs a copy of
    what is given.
    """
    held = [(p, p.detach().clone()) for p in parameters] if dtype is not None else []
    with torch.no_grad():
        try:
            for parameter, exact in held:
                parameter.copy_(exact.to(dtype))
            yield
        finally:
            for parameter, exact in held:
                parameter.copy_(exact)
