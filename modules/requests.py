"""What a person asks of a run under way: by Ctrl-C, a signal, or a file in its folder."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SAVE, SAVE_AND_QUIT = "save", "save_quit"
"""Files that ask for a save now; they are deleted when it is made."""

_SECONDS = 0.5  # between two looks at the folder, which may be on a slow network disk
_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last is Windows' Ctrl-Break


class Requests:
    """Asked between two steps; all processes of a run come to the same answer at the same step.

    The first signal lets the step end, so that the state can be saved; the second one stops at
    once.
    """

    def __init__(self, directory: Path, accelerator: Accelerator):
        self.signal: int | None = None  # the one that came
        self.saves = False
        self.stops = False
        self._directory = directory
        self._looks = accelerator.is_main_process
        self._looked = 0.0
        self._before: dict[int, Any] = {}
        self._agreement = _Agreement() if accelerator.num_processes > 1 else None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                if number := getattr(signal, name, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, error: object, *_rest: object) -> None:
        if self._agreement is not None and error is None:
            self._agreement.finish()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def poll(self) -> None:
        """Note what is asked now: `saves` for this step, `stops` from now on."""
        saves, stops = self._look() if self._looks else (False, False)
        stops |= self.signal is not None
        if self._agreement is not None:
            saves, stops = self._agreement.reach(saves, stops)
        self.saves, self.stops = saves, stops

    def answered(self) -> None:
        """Take away the files that have asked, since what they asked for is done."""
        if self._looks:
            for name in (SAVE, SAVE_AND_QUIT):
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink(missing_ok=True)

    def _look(self) -> tuple[bool, bool]:
        now = time.monotonic()
        if now - self._looked < _SECONDS:
            return False, False
        self._looked = now
        quits = (self._directory / SAVE_AND_QUIT).exists()
        return quits or (self._directory / SAVE).exists(), quits

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        logger.warning("stopping after this step; a second time stops at once, without saving")


class _Agreement:
    """The requests of all processes, one step late, so that none of them waits for another."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        self._group = distributed.new_group(backend="gloo")
        self._wait: Callable[[], object] | None = None
        self._asked: Any = None

    def reach(self, saves: bool, stops: bool) -> tuple[bool, bool]:
        """Send what this process asks for; return what any asked for at the step before."""
        import torch
        import torch.distributed as distributed

        agreed = self.finish()
        self._asked = torch.tensor([saves, stops], dtype=torch.int32, device="cpu")
        work = distributed.all_reduce(
            self._asked, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        assert work is not None
        self._wait = work.wait
        return agreed

    def finish(self) -> tuple[bool, bool]:
        """Wait for what is under way, which by now is there; return it."""
        if self._wait is None:
            return False, False
        self._wait()
        self._wait = None
        return bool(self._asked[0]), bool(self._asked[1])
