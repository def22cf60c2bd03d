"""How often each image was trained on, and how often it should have been."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modules.dataset_files import list_names
from modules.errors import RunError, survived
from modules.files import write_atomically

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.buckets import BucketBatchSampler
    from modules.loading import Group

logger = logging.getLogger(__name__)

FILE = "coverage.csv"
_FLAGS = 256  # steps whose finiteness is asked for at once: each time waits for the device
_SECONDS = 30.0  # between two writes, where epochs are shorter


class Ledger:
    """Counts the images of finished steps, by the index with which the dataset was asked for them.

    At the end of each epoch, and of the run, the counts of all processes are compared with those of
    the plan: images x repeats, and none that is held out. Class images of a prior are not counted.
    Steps up to a resumed state are taken from the plan.

    Args:
        names: of the dataset's images, if they have any.
        repeats: of each image in its batch, which the file counts too.
    """

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        accelerator: Accelerator,
        *,
        names: Sequence[str] | None = None,
        repeats: int = 1,
    ) -> None:
        self._names = names
        self._repeats = repeats
        self._path = directory / FILE
        self._accelerator = accelerator
        self._plan = plan
        self._counted = np.zeros(plan.images, dtype=np.int64)  # by this process
        self._since = 0  # the step behind which it counts
        self._step = 0
        self._left_out: list[int] = []  # steps that were not finite and changed nothing
        self._flags: list[tuple[int, Tensor]] = []
        self._written = -_SECONDS

    def add(self, step: int, group: Group, *, is_bad: Tensor) -> None:
        """Count the images of a finished step; `is_bad` tells whether it changed nothing.

        Raises:
            RunError: at an epoch's end, as `settle` does.
        """
        if step != self._step + 1:  # of a run that goes on from a state without counts
            self._since, self._counted[:] = step - 1, 0
        for part in group:
            indices = np.asarray(part.indices, dtype=np.int64)
            np.add.at(self._counted, indices % len(self._counted), 1)
        self._step = step
        self._flags.append((step, is_bad))
        if len(self._flags) >= _FLAGS:
            self._read_flags()
        if step % self._plan.steps_per_epoch == 0:
            self.settle()

    def settle(self, *, last: bool = False) -> None:
        """Compare all counts up to now with the plan, and write them now and then; when `last`.

        Every process has to be there. What can't be written costs a warning, not the run.

        Raises:
            RunError: an image was trained on more or less often than planned; names the first.
        """
        counted = torch.from_numpy(self._counted)
        if self._accelerator.num_processes > 1:
            moved = counted.to(self._accelerator.device, copy=True)
            counted = self._accelerator.reduce(moved, "sum").cpu()
        actual, planned = counted.numpy(), self._plan.between(self._since, self._step)
        wrong = np.flatnonzero(actual != planned)
        due = last or len(wrong) > 0 or time.monotonic() - self._written > _SECONDS
        if due and self._step > 0 and self._accelerator.is_main_process:
            self._written = time.monotonic()
            with survived(FILE):
                self._write(planned, actual)
        if len(wrong):
            told = [f"{self._name(n)} {actual[n]} times, not {planned[n]}" for n in wrong.tolist()]
            raise RunError(
                f"coverage: by step {self._step} {len(wrong)} of {len(actual)} images were trained "
                f"on more or less often than planned: {list_names(told)}; {self._path} has all. "
                "The loader gives other images than the plan asks for"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know; how often images were drawn follows from the step."""
        self._read_flags()
        known = {"plan": self._plan.digest, "step": self._step, "since": self._since}
        return {**known, "left_out": self._left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; where the plan is another, count from there on."""
        self._step = self._since = state["step"]
        if state["plan"] != self._plan.digest:
            logger.info("%s: other images or batches than before; it counts from here on", FILE)
            return
        self._since, self._left_out = state["since"], list(state["left_out"])
        if self._accelerator.is_main_process:
            self._counted[:] = self._plan.between(self._since, self._step)

    def _read_flags(self) -> None:
        if self._flags:
            bad = torch.stack([flag for _, flag in self._flags]).tolist()
            self._left_out += [s for (s, _), is_bad in zip(self._flags, bad, strict=True) if is_bad]
            self._flags.clear()

    def _write(self, planned: np.ndarray, actual: np.ndarray) -> None:
        self._read_flags()
        left_out = self._plan.of_steps(self._left_out)
        columns = (each * self._repeats for each in (planned, actual, left_out))
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("image", "planned", "actual", "not_finite"))
        lines.writerows(zip(self._all_names(), *(each.tolist() for each in columns), strict=True))
        write_atomically(self._path, text.getvalue())

    def _all_names(self) -> Iterator[str]:
        return map(self._name, range(len(self._counted)))

    def _name(self, number: int) -> str:
        return str(number) if self._names is None else self._names[number]


class Plan:
    """How often each image stands in the batches of some steps, whatever process draws them.

    Args:
        images: of the dataset, whose repeats have greater indices.
        steps_per_epoch: optimizer steps.
        batches: of one optimizer step; an epoch's last may have fewer.
    """

    def __init__(
        self, sampler: BucketBatchSampler, *, images: int, steps_per_epoch: int, batches: int
    ) -> None:
        self.images = images
        self.steps_per_epoch = steps_per_epoch
        self._sampler = sampler
        self._batches = batches
        self._of_epoch = self._count(sampler.buckets)
        self.digest = self._digest()

    def between(self, after: int, to: int) -> np.ndarray:
        """Count each image in the steps behind `after` up to `to`: (images,)."""
        return self._up_to(to) - self._up_to(after)

    def of_steps(self, steps: Iterable[int]) -> np.ndarray:
        """Count each image in some steps, sorted: (images,)."""
        counts = np.zeros(self.images, dtype=np.int64)
        for epoch, own in groupby(steps, lambda step: (step - 1) // self.steps_per_epoch):
            plan = self._sampler.plan(epoch)
            for step in own:
                first = (step - 1) % self.steps_per_epoch * self._batches
                counts += self._count(plan[first : first + self._batches])
        return counts

    def _up_to(self, step: int) -> np.ndarray:
        epochs, steps = divmod(step, self.steps_per_epoch)
        counts = self._of_epoch * epochs
        if steps:
            counts += self._count(self._sampler.plan(epochs)[: steps * self._batches])
        return counts

    def _count(self, batches: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        indices = np.concatenate([np.asarray(each, dtype=np.int64) for each in batches])
        return np.bincount(indices % self.images, minlength=self.images)

    def _digest(self) -> str:
        sampler = self._sampler
        size = sampler.batch_size * sampler.world_size
        told = [self.images, size, sampler.shuffle, sampler.seed]
        digest = hashlib.sha256(repr([*told, self._batches, self.steps_per_epoch]).encode())
        for bucket in sampler.buckets:
            digest.update(bucket.tobytes() + b".")
        return digest.hexdigest()[:12]


class NoLedger:
    """The ledger of a run that counts nothing."""

    def add(self, step: int, group: Group, *, is_bad: Tensor) -> None:
        """Count nothing."""

    def settle(self, *, last: bool = False) -> None:
        """Compare nothing."""
