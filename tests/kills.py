"""Training in processes that are killed: at some moment, or at one of the writes of a save."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POINTS = ("fsync", "rename", "replace", "unlink", "mkdir")
"""Functions of `os` at which a kill can be placed; what is written lies between them."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a process kills itself; as little of it is told as of a power cut."""

    after_seconds: float | None = None  # of the process
    after_step: int | None = None  # a moment into the step that follows
    at_call: int | None = None  # the number of a call of one of POINTS, from 0 on
    behind: bool = False  # the call is made first
    file_size: int | None = None  # when a file grows beyond so many bytes
    number: int = signal.SIGKILL  # of the signal that is sent after some seconds
    only_rank: int | None = None  # of several processes
    group: bool = False  # to its children too, as a terminal and a cluster do


def train(
    config: Path, *overrides: str, kill: Kill | None = None, processes: int = 1
) -> tuple[int, ...]:
    """Train in processes of their own; returns their exit codes, -9 of one that was killed."""
    context = multiprocessing.get_context("forkserver")
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), path])
    context.set_forkserver_preload(["kills_preload"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [
        context.Process(
            target=_run, args=(str(config), overrides, kill, _environment(rank, processes, port))
        )
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    codes: list[int] = []
    while any(child.is_alive() for child in children):
        time.sleep(0.01)
        if any(child.exitcode not in (None, 0) for child in children):
            for child in children:  # a launcher does so too
                child.kill()
    for child in children:
        child.join()
        assert child.exitcode is not None
        codes.append(child.exitcode)
    return tuple(codes)


def count_calls(config: Path, *overrides: str, counts: Path) -> int:
    """How many calls of POINTS a whole run makes."""
    os.environ["KILLS_COUNTS"] = str(counts)
    try:
        assert train(config, *overrides) == (0,)
    finally:
        del os.environ["KILLS_COUNTS"]
    return int(counts.read_text())


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    own = {"KILLS_COUNTS": os.environ.get("KILLS_COUNTS", "")}
    if processes == 1:
        return own
    return own | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


def _run(
    config: str, overrides: Sequence[str], kill: Kill | None, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = "1"
    log = os.open(f"{config}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    torch.set_num_threads(1)
    calls = _watch(kill or Kill())
    if kill is not None and kill.file_size is not None:
        # The system kills a process whose file grows beyond the limit, unless it is ignored.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill.file_size, resource.RLIM_INFINITY))
    hit = kill is not None and kill.only_rank in (None, int(environment.get("RANK", "0")))
    if kill is not None and hit:
        if kill.group:
            os.setpgid(0, 0)
        if kill.after_seconds is not None:
            _send_later(kill, kill.after_seconds)
        if kill.after_step is not None:
            _send_in_step(kill, kill.after_step)
    import main

    code = main.main([config, *overrides])
    if environment["KILLS_COUNTS"]:
        Path(environment["KILLS_COUNTS"]).write_text(str(calls[0]))
    os._exit(code)


def _send_later(kill: Kill, seconds: float) -> None:
    send = os.killpg if kill.group else os.kill
    timer = threading.Timer(seconds, send, (os.getpid(), kill.number))
    timer.daemon = True
    timer.start()


def _send_in_step(kill: Kill, step: int) -> None:
    from modules.trainer import Trainer

    make = Trainer.train_step

    def train_step(trainer: Trainer, group: Any) -> Any:
        if trainer.step == step:
            _send_later(kill, 0.01)
        return make(trainer, group)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def _watch(kill: Kill) -> list[int]:
    """Count the calls of POINTS in this process, and kill it at one of them."""
    made = [0]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            number, made[0] = made[0], made[0] + 1
            if number == kill.at_call and not kill.behind:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if number == kill.at_call:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    for name in POINTS:
        setattr(os, name, watched(getattr(os, name)))
    return made
