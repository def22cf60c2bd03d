"""Points where the processes of a run wait for each other, and what is told if one doesn't come."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from modules.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=12)
"""How long is waited: others may have nothing to do while one prepares a dataset."""


def meet(accelerator: Accelerator, what: str) -> None:
    """Wait until every process of a run has come here, behind `what`.

    The first process counts the others; it waits on the CPU, so that cards are not kept busy and no
    watchdog of theirs ends the run.

    Raises:
        RunError: one has ended or not come in time; says behind what, and the first one which.
    """
    if accelerator.num_processes == 1:
        return
    import torch.distributed as distributed

    try:
        distributed.monitored_barrier(
            _group(distributed.group.WORLD), timeout=PATIENCE, wait_all_ranks=True
        )
    except RuntimeError as error:
        place = f"process {accelerator.process_index + 1} of {accelerator.num_processes}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RunError(
            f"{place} waits behind {what} for the others, and one of them has ended or has not "
            f"come within {PATIENCE} ({reason}); look at what each process says"
        ) from error


@cache
def _group(_world: Any) -> Any:
    """A group of all processes that meets without cards; made where all come at the same time."""
    import torch.distributed as distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)
