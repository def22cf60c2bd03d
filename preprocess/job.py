"""What the jobs of preprocess/ share: arguments, worker processes, a progress bar, an end."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from modules.console import quiet_libraries, survive_narrow_encodings

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

MAX_WORKERS = 61  # what Windows can wait for


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a job did, in images."""

    done: int
    skipped: int
    """Finished by an earlier run in the same way, and unchanged since."""
    failed: list[str]
    """A line for each that failed."""


def make_parser(
    doc: str | None,
    *,
    directory: str | None = "dataset, made by bucketing.py",
    output: str,
    output_required: bool = False,
    num_workers: str | None = None,
    batch_size: int | None = None,
    shard: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that scripts have in common, in the same words.

    `doc` is the script's docstring; `directory`, `output` and `num_workers` say what they are. An
    option without words, `batch_size` without its default, and `shard` unless it is true, are left
    out.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)
    if directory is not None:
        parser.add_argument("-d", "--directory", "--input_dir", required=True, help=directory)
    parser.add_argument(
        *("-o", "--output", "--output_dir", "--output_path"), required=output_required, help=output
    )
    if batch_size is not None:
        parser.add_argument(
            "--batch_size",
            type=int,
            default=batch_size,
            help="images at once; less takes less memory",
        )
    if num_workers is not None:
        parser.add_argument("--num_workers", "--threads", type=int, help=num_workers)
    if shard:
        parser.add_argument(
            "--shard",
            metavar="I/N",
            help="do part I of N, as 2/4; the others run at the same time, on any machines",
        )
    return parser


def run_command(job: Callable[[], tuple[str, Sequence[str]]]) -> int:
    """Run a script's job, which returns a summary and a line for each failure; print both.

    Returns the exit status: 0, 1 if something failed, 2 for wrong arguments, 130 for Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    survive_narrow_encodings()
    quiet_libraries()
    try:
        summary, failed = job()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}; run again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run again to go on", file=sys.stderr)
        return 130
    for line in failed:
        print(line, file=sys.stderr)
    print(summary)
    return 1 if failed else 0


def track(items: Iterable[Outcome], *, total: int, description: str) -> Iterator[Outcome]:
    """Yield `items` under a progress bar in images per second; none if there is nothing to do."""
    if total == 0:
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=description, unit=" images", dynamic_ncols=True)


def run_in_processes(
    process: Callable[[Task], Outcome], tasks: Iterable[Task], *, num_workers: int | None
) -> Iterator[Outcome]:
    """Yield `process(task)` of every task in order, done in worker processes.

    `num_workers` is one for each processor if None; up to 1, this process does the work.

    Raises:
        ValueError: a worker process has died.
    """
    workers = min(os.cpu_count() or 1 if num_workers is None else num_workers, MAX_WORKERS)
    if workers <= 1:
        yield from map(process, tasks)
        return
    # Spawned everywhere: a fork would copy threads that the caller's libraries may have.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c)
    waiting: deque[Future[Outcome]] = deque()
    try:
        for task in tasks:
            waiting.append(executor.submit(process, task))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process died, perhaps for lack of memory; run again to go on, with fewer "
            "of them (--num_workers 1)"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps a docstring's lines, and shows the defaults that are words or numbers."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_shown = not isinstance(action.default, bool | list | tuple | None)
        return super()._get_help_string(action) if is_shown else action.help


def _leave_ctrl_c() -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
