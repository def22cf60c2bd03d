"""When the state of a run is kept, so that it can go on whatever ends it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modules.checkpoint import TrainState, is_finite
from modules.errors import Interrupted
from modules.files import write_atomically
from modules.requests import Requests
from modules.resume import FINISHED, command
from modules.schedule import Every
from modules.state_folder import delete_other_states, state_path

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)


class StateKeeper:
    """Writes the state when weights are saved, after some minutes, when asked, and at any end.

    One is kept: an earlier state is deleted when the next one is whole.

    Args:
        every: when weights are saved.
        minutes: at the latest so long after the last state; 0: only with weights.
        is_regular: False keeps it only when it is asked for or the run ends early.
        writes: whether this process writes; of several one does.
    """

    def __init__(
        self,
        directory: Path,
        requests: Requests,
        *,
        every: Every,
        minutes: float = 15.0,
        is_regular: bool = True,
        writes: bool = True,
    ):
        self.requests = requests
        self._directory = directory
        self._every = every
        self._seconds = minutes * 60
        self._is_regular = is_regular
        self._writes = writes
        self._since = time.monotonic()
        self._kept: int | None = None  # the step whose state is the newest

    def keep_if_due(self, run: Trainer, *, last: bool) -> None:
        """Keep the state when due; one that can't be written costs a warning, not the run."""
        due = last or self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        overdue = 0 < self._seconds < time.monotonic() - self._since
        asked = self.requests.saves or self.requests.stops
        if asked or (self._is_regular and (due or overdue)):
            self.keep(run)
        if self.requests.stops and not last and self._writes:
            # Said here: a launcher kills all processes as soon as one has ended.
            logger.warning("%s", self._farewell(run))
        if self.requests.saves:
            self.requests.answered()

    def keep(self, run: Trainer) -> bool:
        """Write the state now, if its step has none yet; tell whether there is one."""
        if not self._writes or self._kept == run.step:
            return True
        state = TrainState.of(run)
        if not is_finite(state):
            logger.warning("step %d: a weight is not finite; its state is not kept", run.step)
            return False
        path = state_path(self._directory, run.step)
        try:
            state.save(path)
        except Exception as error:  # the disk's, or an optimizer's with what can't be written
            logger.warning("%s: can't be written (%s); the state before it stays", path, error)
            return False
        self._kept = run.step
        self._since = time.monotonic()
        with contextlib.suppress(OSError):
            delete_other_states(self._directory, path)
        return True

    def rehearse(self, run: Trainer) -> None:
        """Write the state into the run's folder and read it again, where states are kept.

        Raises:
            OSError, ValueError: it can't be written, or not be read again.
        """
        if self._writes and self._is_regular:
            path = state_path(run.directory, run.step)
            TrainState.of(run).save(path)
            TrainState.load(path)

    @contextlib.contextmanager
    def watch(self, run: Trainer) -> Iterator[None]:
        """Answer signals in it, and keep the state if an error ends it.

        Raises:
            Interrupted: a person asked for the end, before all steps were done.
        """
        try:
            with self.requests:
                yield
        except KeyboardInterrupt:  # the second time: at once
            raise
        except BaseException as error:
            # In the middle of an update the weights are of no step, and the last state is better.
            is_kept = run.is_between_steps and run.step > 0 and self.keep(run)
            if self.requests.signal is not None:  # which may have ended workers or other ranks
                message = self._farewell(run)
                logger.warning("%s", message)
                raise Interrupted(message, signal=self.requests.signal) from error
            if is_kept:
                logger.warning("step %d is kept; go on with: %s", run.step, self.command())
            raise
        if run.step < run.max_train_steps:
            raise Interrupted(self._farewell(run), signal=self.requests.signal)

    def finish(self, step: int) -> None:
        """Note in the run's folder that nothing is left to do."""
        if self._writes:
            # A kill may have come between the last state and the end of the one before.
            with contextlib.suppress(OSError):
                delete_other_states(self._directory, state_path(self._directory, step))
            write_atomically(self._directory / FINISHED, f'{{"steps": {step}}}\n')

    def _farewell(self, run: Trainer) -> str:
        what = "is kept" if self._kept == run.step else "could not be kept"
        return f"stopped: step {run.step} {what}; go on with: {self.command()}"

    def command(self) -> str:
        """What a person types to go on."""
        return command(self._directory)
