"""What is told where a card's memory was too small: what the run takes, and what would lower it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from modules.errors import RunError
from modules.sections import Config


@contextlib.contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Let a card's full memory end a run with the estimate of what it takes.

    Raises:
        RunError: the memory of the card was too small.
    """
    import torch

    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        reason = str(error).strip().splitlines()[0]
    from modules.memory_table import memory_lines
    from modules.run_parts import load_parts

    reload = partial(load_parts, weights=False)
    lines = memory_lines(config, reload(config), reload)
    listed = "\n".join(f"  {line}" for line in lines)
    raise RunError(f"the card's memory is too small: {reason}; what the run takes:\n{listed}")
