"""A step, an image and a save before the long run, which then begins as if they had not been."""

from __future__ import annotations

import contextlib
import gc
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modules.checkpoint import trained_tensors
from modules.errors import RunError
from modules.parts import NoSamples, NoSaves
from modules.randomness import drawn_apart
from modules.snapshot import Snapshot
from modules.step_clock import StepClock
from modules.trial_batches import TrialBatch, Tried, estimate_seconds, find_batches, shown

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)

LEAST_STEPS = 500
"""With more steps to come a run is rehearsed where the config doesn't say."""

_SMALLER = (
    "lower train.batch_size (train.gradient_accumulation_steps makes up for it), set "
    "train.gradient_checkpointing: true or train.mixed_precision: bf16, or make smaller buckets"
)


def is_rehearsed(wanted: bool | None, run: Trainer) -> bool:
    """Whether a run is rehearsed; one that goes on too, since its machine may be another."""
    left = run.max_train_steps - run.step
    return left > 0 and (left > LEAST_STEPS if wanted is None else wanted)


def rehearse(run: Trainer, *, reload: Callable[[Trainer], None], is_new: bool) -> None:
    """Make a step with the smallest and the largest batch, draw an image, save; report times.

    Everything is taken back: weights, optimizer, random numbers, counters, files. Every process of
    several has to be there. `reload` loads again what was saved into `run.directory`; the folder of
    a run that `is_new` goes too if something fails.

    Raises:
        RunError: something fails; says what.
    """
    device, is_main = run.accelerator.device, run.accelerator.is_main_process
    own = run.directory
    temporary = own / f".{secrets.token_hex(8)}.tmp"  # found among leftovers after a kill
    try:
        with _taken_back(run):
            if is_main:
                with _stage("making a folder"):
                    temporary.mkdir()
            run.directory = temporary
            run.metadata = replace(run.metadata, gathered=dict)  # whose files are being hashed
            run.identity = dict
            told, seconds = _rehearse_steps(run)
            for part in (_rehearse_sample(run), _rehearse_save(run, reload)):
                told, seconds = [*told, *part[0]], seconds + part[1]
    except RunError:
        if is_main and is_new:
            run.accelerator.end_training()  # trackers write there
            shutil.rmtree(own, ignore_errors=True)
        raise
    finally:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    run.accelerator.wait_for_everyone()
    logger.info("rehearsal: %s", "; ".join(told))
    steps = run.max_train_steps - run.step
    logger.info("the run will take about %s (%d steps)", duration(seconds), steps)


def _rehearse_steps(run: Trainer) -> tuple[list[str], float]:
    """The smallest batch first, so that the largest finds the optimizer's state in memory."""
    with _stage("reading the dataset"):
        batches = find_batches(run.source, run.model)
        priors = find_batches(run.prior, run.model) if run.prior is not None else []
    by_work, priors = (sorted(each, key=lambda b: b.work) for each in (batches, priors))
    small = _try(run, "smallest", by_work[0], priors[:1])
    large = _try(run, "largest", by_work[-1], priors[-1:])
    skipped = run.guard.take_skipped()
    if skipped and run.accelerator.scaler is None:
        logger.warning(
            "rehearsal: loss or gradient of %d of 2 steps is not finite; a step that is not "
            "changes nothing, and too many in a row end the run",
            skipped,
        )
    told = [f"largest bucket {large}"]
    if len(batches) > 1:
        told.append(f"smallest {small}")
    per_epoch = estimate_seconds(batches, run.source, small, large)
    return told, per_epoch * (run.max_train_steps - run.step) / run.steps_per_epoch


def _try(run: Trainer, kind: str, batch: TrialBatch, prior: Sequence[TrialBatch]) -> Tried:
    """Make one optimizer step of a batch, and of one of class images beside it, if any."""
    device, count = run.accelerator.device, run.gradient_accumulation_steps
    with _stage(f"a step with the {kind} bucket, {batch}", _SMALLER):
        began = time.perf_counter()
        group = run.source.trial(batch.indices, batches=count)
        for source, beside in zip(filter(None, [run.prior]), prior, strict=True):
            group += source.trial(beside.indices, batches=count)
        reading = time.perf_counter() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        run.train_step(group)
        _wait(device)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return Tried(batch, time.perf_counter() - began, reading, peak, batches=count)


def _rehearse_sample(run: Trainer) -> tuple[list[str], float]:
    sampler: Any = run.sampler
    if isinstance(sampler, NoSamples):
        return [], 0.0
    if not hasattr(sampler, "rehearse"):
        return [f"sample left out, {type(sampler).__name__} has no rehearse"], 0.0
    with _stage("a validation image", "see the section sample"):
        began = time.perf_counter()
        count = sampler.rehearse(run)
        _wait(run.accelerator.device)
        seconds = time.perf_counter() - began
    return [f"sample {shown(seconds)}"], count * seconds


def _rehearse_save(run: Trainer, reload: Callable[[Trainer], None]) -> tuple[list[str], float]:
    saver: Any = run.saver
    if isinstance(saver, NoSaves):
        return [], 0.0
    with _quiet():
        if not hasattr(saver, "rehearse"):
            told, count = f"save left out, {type(saver).__name__} has no rehearse", 0
            began = time.perf_counter()
        else:
            with _stage("a save", "see the section save"):
                began = time.perf_counter()
                count = saver.rehearse(run)
            told = "save {}, verified and loaded again"
        with _stage("keeping the state", "save.state: false keeps none, and can't be resumed"):
            run.keeper.rehearse(run)
        seconds = time.perf_counter() - began
        if count:
            with _stage("loading the save again"):
                reload(run)
    return [told.format(shown(seconds))], count * seconds


@contextlib.contextmanager
def _taken_back(run: Trainer) -> Iterator[None]:
    """Put the run back to where it was, bit by bit, whatever is done in it."""
    owners = [run.optimizer, run.lr_scheduler, run.accelerator.scaler, run.average, run.guard]
    snapshot = Snapshot(_tensors(run), [owner for owner in owners if owner is not None])
    attributes, clock = dict(vars(run)), run.step_log.clock
    run.step_log.clock = StepClock(run.accelerator.device)
    try:
        with drawn_apart("rehearsal", run.seed):
            run.optimizer.train()
            yield
    finally:
        snapshot.restore()
        vars(run).update(attributes)
        run.step_log.clock = clock


def _tensors(run: Trainer) -> Iterator[Tensor]:
    """All that a step may change of weights, in the order of a state."""
    buffers = (network.buffers() for network in run.networks.values())  # type: ignore[attr-defined]
    yield from chain((tensor for _, tensor in trained_tensors(run)), *buffers)


@contextlib.contextmanager
def _stage(what: str, advice: str = "") -> Iterator[None]:
    """Tell in one message what failed."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, (ValueError, OSError, RuntimeError)):
            reason = f"{type(error).__name__}: {reason}"
        full = (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or "DefaultCPUAllocator" in reason
        )
        failed = f"out of memory in {what} ({reason})" if full else f"{what} failed: {reason}"
        advice = f"; {advice}" if advice and (full or advice != _SMALLER) else ""
        raise RunError(
            f"rehearsal: {failed}{advice}. Nothing was trained, and nothing of it is left on the "
            "disk; train.rehearse=false begins without a rehearsal"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of files that nobody will see."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
