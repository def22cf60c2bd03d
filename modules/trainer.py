"""The trainer: one loss for every family, objective and network, one order of effects."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modules.averaging import MovingAverage, Weights, saved_versions
from modules.batch import Batch
from modules.coverage import Ledger, NoLedger
from modules.denoising import denoising_error
from modules.device_copies import on_device
from modules.engine import LossModule, memory_returned
from modules.errors import survived
from modules.loading import Group, Source, step_groups
from modules.meeting import meet
from modules.metrics import Metrics
from modules.nonfinite import check_steps
from modules.optimizer import ParameterGroup, settings_of
from modules.protocols import Network, Objective, Sampler, Saver
from modules.randomness import seed_step
from modules.run_metadata import RunMetadata
from modules.state_keeper import StateKeeper
from modules.step_guard import StepGuard
from modules.step_log import Measured, StepLog
from modules.text_stop import TextStop
from modules.trackers import show_images
from modules.validation import NoValidation, Validation
from modules.weight_update import weight_update

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

    from modules.models.base import DiffusionModel
    from modules.sections import Config
    from modules.trial import Trial

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class Trainer:
    """Trains what requires gradients of a model and its networks.

    Everything that is given is ready: networks attached, parameters frozen or not, modules on
    their device. `prior` has images of a class beside those of `source` (Ruiz et al. 2022,
    arXiv:2208.12242); `identity` is what tells the run from others, kept with its state.
    """

    name: str
    directory: Path
    model: DiffusionModel
    networks: dict[str, Network]
    trained_base: dict[str, nn.Parameter]
    groups: Sequence[ParameterGroup]
    objective: Objective
    source: Source
    optimizer: Any
    lr_scheduler: Any
    accelerator: Accelerator
    saver: Saver
    sampler: Sampler
    keeper: StateKeeper
    text_stop: TextStop
    max_train_steps: int
    steps_per_epoch: int
    prior: Source | None = None
    average: MovingAverage | None = None
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    fused_backward: bool = False
    max_nonfinite_steps: int = 20
    log_every: int = 10
    seed: int = 0
    validation: Validation | NoValidation = field(default_factory=NoValidation)
    coverage: Ledger | NoLedger = field(default_factory=NoLedger)
    identity: Callable[[], Mapping[str, Any]] = field(default=dict)
    metadata: RunMetadata = field(default_factory=RunMetadata)

    def __post_init__(self) -> None:
        networks, accelerator = self.networks.values(), self.accelerator
        self.step, self.is_between_steps = 0, True  # finished ones
        self.last_group: Group = []
        self.stateful: dict[str, Any] = {}  # by name, what else a state holds of a run
        self.metrics = Metrics(self.directory)
        every, source = self.log_every, self.source
        self.step_log = StepLog(self.metrics, accelerator, self.groups, every=every, source=source)
        self._after_step = [n.after_step for n in networks if hasattr(n, "after_step")]
        self._rates, self.settings = self.lr_scheduler.get_last_lr(), settings_of(self.optimizer)
        self._loss, self.optimizer = accelerator.prepare(
            LossModule(self.loss, [*self.model.components().values(), *networks]), self.optimizer
        )
        self.guard = StepGuard(self.optimizer, accelerator, most=self.max_nonfinite_steps)
        self._update = weight_update(self)

    @classmethod
    def from_config(cls, config: Config, *, check: bool | Trial = False) -> Trainer | None:
        """Build everything that a config says; with `check` show the plan and build no more.

        Raises:
            ConfigError: an argument, the dataset or the model does not fit.
        """
        from modules.assembly import assemble

        return assemble(config, check=check)

    def loss(self, batch: Batch) -> Tensor:
        """Denoising loss of one batch. Every model family and every network takes this path."""
        batch = self.model.encode(batch).repeat(self.source.repeats)
        clean = self.model.encode_images(batch)
        noise = self.objective.sample_noise(clean)
        timesteps = self.objective.sample_timesteps(len(clean), clean.device)
        error = denoising_error(self, batch, clean=clean, noise=noise, timesteps=timesteps)
        return (batch.weigh(error) * self.objective.loss_weight(timesteps)).sum()

    def train_step(self, group: Group) -> Measured:
        """One optimizer step over the batches of a group; metrics stay tensors, nothing waits.

        What it draws at random depends on its number alone, so that it can be made again.
        """
        number = self.step + 1
        seed_step(self.seed, step=number, rank=self.accelerator.process_index)
        self.text_stop.begin_step(number)
        self._rates = self.lr_scheduler.get_last_lr()
        self.is_between_steps = not self._update.is_within_backward
        total = torch.zeros((), device=self.accelerator.device)
        for position, part in enumerate(group):
            last = position == len(group) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._loss):
                loss = self._loss(part.batch.to(self.accelerator.device)) * part.weight
                self.step_log.clock.lap("forward")
                self._update.watch(loss, number=number)
                self.accelerator.backward(loss)
                self.step_log.clock.lap("backward")
            total += loss.detach()
        self.text_stop.drop_gradients(number)
        norm = self._update.clip()
        self.is_between_steps = False
        self._update.make(loss=total, norm=norm, number=number)
        self.lr_scheduler.step()
        for bound in self._after_step:
            bound()
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_log.clock.lap("optimizer")
        return {"loss": total, "grad_norm": norm, "images": sum(part.images for part in group)}

    def step_groups(self) -> Iterator[Group]:
        """The batches of one optimizer step after another, behind those of finished steps."""
        count = self.gradient_accumulation_steps
        groups = step_groups(
            self.source, prior=self.prior, gradient_accumulation_steps=count, done=self.step
        )
        return on_device(groups, self.accelerator.device)

    def train(self) -> None:
        """Train to `max_train_steps`, from wherever it stands.

        Raises:
            RunError: nothing but losses or gradients that are not finite.
            Interrupted: a person asked for the end; the state is kept.
        """
        groups = self.step_log.clock.timed(self.step_groups())
        self.optimizer.train()
        with self.keeper.watch(self), self.step_log.shown(self.step, self.max_train_steps) as bar:
            self.validation.measure_if_due(self)
            self._sample(last=self.step == self.max_train_steps)
            while self.step < self.max_train_steps and not self.keeper.requests.stops:
                self.last_group = next(groups)
                metrics = self.train_step(self.last_group)
                self.step, self.is_between_steps = self.step + 1, True
                self.coverage.add(self.step, self.last_group, is_bad=self.guard.is_bad)
                self.keeper.requests.poll()
                # The order is fixed: validate, which may make this step the last one; log; save
                # what was trained; keep the state, with what validation has found; sample.
                self.validation.measure_if_due(self)
                last = self.step == self.max_train_steps
                loss = self.log(metrics, last=last)
                self.saver.save_if_due(self, last=last)
                self.keeper.keep_if_due(self, last=last)
                self._sample(last=last)
                if loss is not None:
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
            self.coverage.settle(last=True)
            meet(self.accelerator, "the last step")  # nobody leaves while another still writes
        self.keeper.finish(self.step)
        logger.info("done: %s", self.directory)

    def log(self, metrics: Measured, *, last: bool) -> float | None:
        """Keep a step's metrics; where a line is written return its loss."""
        loss = self.step_log.add(
            metrics, step=self.step, epoch=self.epoch, rates=self._rates, last=last
        )
        if loss is not None:
            check_steps(self)
        return loss

    def _sample(self, *, last: bool) -> None:
        with memory_returned(self.accelerator.device), survived("sample"):
            self.sampler.sample_if_due(self, last=last)

    def log_images(self, key: str, images: Sequence[Image], captions: Sequence[str]) -> None:
        """Send pictures to the trackers that show pictures."""
        show_images(self.accelerator.trackers, key, images, captions, step=self.step)

    def log_metrics(self, measured: Mapping[str, float]) -> None:
        """Write what was measured beside training at this step."""
        self.step_log.write(measured, step=self.step, epoch=self.epoch)

    @property
    def epoch(self) -> int:
        """Finished and begun passes over the dataset at this step, counted from 1."""
        return max(1, -(-self.step // self.steps_per_epoch))

    @property
    def asks_for_save(self) -> bool:
        """Whether a person wants the weights of this step, due or not."""
        return self.keeper.requests.saves

    def versions(self) -> dict[str, Weights]:
        """What is saved: contexts in which the weights are so, by what their files' names add."""
        return saved_versions(self.average, self.usable_weights)

    def sampled_weights(self) -> contextlib.AbstractContextManager:
        """The weights as images are drawn with them."""
        average = self.average
        return average.swapped_in() if average and average.is_sampled else self.usable_weights()

    @contextlib.contextmanager
    def usable_weights(self) -> Iterator[None]:
        """The weights as they are to be used; schedule-free optimizers train on others."""
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of training, for sampling in the same."""
        return self.accelerator.autocast()
