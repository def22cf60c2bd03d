"""The trainer: one loss for every family, objective and network, one order of effects."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from modules.averaging import MovingAverage, Weights, saved_versions
from modules.batch import Batch, DenoiserInputs
from modules.engine import LossModule
from modules.errors import RunError
from modules.loading import Group, Source, step_groups
from modules.metrics import Metrics
from modules.objectives import masked_mean
from modules.optimizer import ParameterGroup, make_step
from modules.protocols import Network, Objective, Sampler, Saver
from modules.run_metadata import RunMetadata
from modules.step_log import Measured, StepLog, is_lost
from modules.text_stop import TextStop, text_parameters
from modules.trackers import show_images

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

    from modules.models.base import DiffusionModel
    from modules.sections import Config

logger = logging.getLogger(__name__)


class Trainer:
    """Trains what requires gradients of a model and its networks.

    Everything that is given is ready: networks attached, parameters frozen or not, modules on
    their device. `prior` has images of a class beside those of `source` (arXiv:2208.12242).
    """

    def __init__(
        self,
        *,
        name: str,
        directory: Path,
        model: DiffusionModel,
        networks: Mapping[str, Network],
        trained_base: Mapping[str, nn.Parameter],
        groups: Sequence[ParameterGroup],
        objective: Objective,
        source: Source,
        optimizer: Any,
        lr_scheduler: Any,
        accelerator: Accelerator,
        saver: Saver,
        sampler: Sampler,
        max_train_steps: int,
        steps_per_epoch: int,
        prior: Source | None = None,
        average: MovingAverage | None = None,
        stop_text_encoders_after: int | None = None,
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float = 1.0,
        log_every: int = 10,
        metadata: RunMetadata | None = None,
    ):
        self.name = name
        self.directory = directory
        self.model = model
        self.networks = dict(networks)
        self.trained_base = dict(trained_base)
        self.groups = list(groups)
        self.objective = objective
        self.source = source
        self.prior = prior
        self.average = average
        self.lr_scheduler = lr_scheduler
        self.accelerator = accelerator
        self.saver = saver
        self.sampler = sampler
        self.metadata = metadata or RunMetadata()
        self.max_train_steps = max_train_steps
        self.steps_per_epoch = steps_per_epoch
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.step = 0
        self.metrics = Metrics(directory)
        self.step_log = StepLog(self.metrics, accelerator, self.groups, every=log_every)
        self.text_stop = TextStop(
            model,
            text_parameters(trained_base, self.networks.values()),
            after=stop_text_encoders_after,
            alone=accelerator.num_processes == 1,
        )
        self._parameters = [p for group in self.groups for p in group.parameters]
        self._after_step = [n.after_step for n in networks.values() if hasattr(n, "after_step")]
        self._rates: list[float] = lr_scheduler.get_last_lr()
        self._loss, self.optimizer = accelerator.prepare(
            LossModule(self.loss, [*model.components().values(), *self.networks.values()]),
            optimizer,
        )

    @classmethod
    def from_config(cls, config: Config, *, check: bool = False) -> Trainer | None:
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

        inputs = DenoiserInputs(
            sample=self.objective.add_noise(clean, noise, timesteps),
            timestep=timesteps,
            **self.model.encode_prompts(batch),
        )
        for network in self.networks.values():
            inputs = network.condition(inputs, batch)

        prediction = self.model.denoise(inputs)
        target = self.objective.target(clean, noise, timesteps)
        error = self.objective.error(prediction, target, timesteps)  # (B, C, h, w)
        per_image = batch.weigh(masked_mean(error, batch.mask))  # (B,)
        return (per_image * self.objective.loss_weight(timesteps)).sum()

    def train_step(self, group: Group) -> Measured:
        """One optimizer step over the batches of a group; metrics stay tensors, nothing waits."""
        self.text_stop.begin_step(self.step)
        total = torch.zeros((), device=self.accelerator.device)
        for position, part in enumerate(group):
            last = position == len(group) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._loss):
                loss = self._loss(part.batch.to(self.accelerator.device)) * part.weight
                self.accelerator.backward(loss)
            total += loss.detach()
        self.text_stop.drop_gradients(self.step)
        images = sum(part.images for part in group)
        metrics: dict[str, Tensor | int] = {"loss": total, "images": images}
        if norm := self.max_grad_norm:
            metrics["grad_norm"] = self.accelerator.clip_grad_norm_(self._parameters, norm)
        self._rates = self.lr_scheduler.get_last_lr()
        make_step(self.optimizer, number=self.step)
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        for bound in self._after_step:
            bound()
        if self.average is not None:
            self.average.update()
        return metrics

    def step_groups(self) -> Iterator[Group]:
        """The batches of one optimizer step after another."""
        return step_groups(
            self.source,
            prior=self.prior,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )

    def train(self) -> None:
        """Train to `max_train_steps`.

        Raises:
            RunError: the loss or a trained tensor is not finite.
        """
        self.sampler.sample_if_due(self, last=False)
        groups = self.step_groups()
        self.optimizer.train()
        shown = self.accelerator.is_main_process
        bar = tqdm(total=self.max_train_steps, desc="training", disable=not shown)
        self.step_log.restart_clock()
        try:
            while self.step < self.max_train_steps:
                self.step += 1
                last = self.step == self.max_train_steps
                metrics = self.train_step(next(groups))
                # The order is fixed: log what was measured, save what was trained, sample from it.
                loss = self.log(metrics, last=last)
                self.saver.save_if_due(self, last=last)
                self.sampler.sample_if_due(self, last=last)
                if loss is not None:
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
            self.accelerator.wait_for_everyone()  # nobody leaves while another still writes
        finally:
            bar.close()
            self.step_log.plot()
            self.accelerator.end_training()
        logger.info("done: %s", self.directory)

    def log(self, metrics: Measured, *, last: bool) -> float | None:
        """Keep a step's metrics; where a line is written return its loss."""
        loss = self.step_log.add(
            metrics, step=self.step, epoch=self.epoch, rates=self._rates, last=last
        )
        if is_lost(loss, self.accelerator):
            raise RunError(
                f"step {self.step}: the loss is {loss}; training stops, what was saved before "
                "stays. Lower the learning rate, or check the images of the dataset"
            )
        return loss

    def log_images(self, key: str, images: Sequence[Image], captions: Sequence[str]) -> None:
        """Send pictures to the trackers that show pictures."""
        for tracker in self.accelerator.trackers:
            show_images(tracker, key, images, captions, step=self.step)

    def log_metrics(self, measured: Mapping[str, float]) -> None:
        """Write what was measured beside training at this step."""
        self.step_log.write(measured, step=self.step, epoch=self.epoch)

    @property
    def epoch(self) -> int:
        """Finished and begun passes over the dataset at this step, counted from 1."""
        return max(1, -(-self.step // self.steps_per_epoch))

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
