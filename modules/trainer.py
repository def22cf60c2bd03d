"""The trainer: one loss for every family, objective and network, one order of effects."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from modules.batch import Batch, DenoiserInputs
from modules.engine import LossModule
from modules.errors import RunError
from modules.loading import Group, step_groups
from modules.metrics import Metrics
from modules.objectives import masked_mean
from modules.optimizer import ParameterGroup, make_step
from modules.protocols import Network, Objective, Sampler, Saver
from modules.trackers import show_images

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

    from modules.buckets import BucketBatchSampler
    from modules.config import Config
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)


class Trainer:
    """Trains what requires gradients of a model and its networks.

    Everything that is given is ready: networks attached, parameters frozen or not, modules on
    their device. `loader` yields this rank's part of each global batch that `batch_sampler` plans.
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
        loader: Any,
        batch_sampler: BucketBatchSampler,
        optimizer: Any,
        lr_scheduler: Any,
        accelerator: Accelerator,
        saver: Saver,
        sampler: Sampler,
        max_train_steps: int,
        steps_per_epoch: int,
        minibatch_repeat: int = 1,
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float = 1.0,
        log_every: int = 10,
    ):
        self.name = name
        self.directory = directory
        self.model = model
        self.networks = dict(networks)
        self.trained_base = dict(trained_base)
        self.groups = list(groups)
        self.objective = objective
        self.loader = loader
        self.batch_sampler = batch_sampler
        self.lr_scheduler = lr_scheduler
        self.accelerator = accelerator
        self.saver = saver
        self.sampler = sampler
        self.max_train_steps = max_train_steps
        self.steps_per_epoch = steps_per_epoch
        self.minibatch_repeat = minibatch_repeat
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.log_every = log_every
        self.step = 0
        self.metrics = Metrics(directory)
        self._parameters = [p for group in self.groups for p in group.parameters]
        self._since_log: list[Mapping[str, Tensor | int]] = []
        self._logged_at = time.perf_counter()
        self._rates: list[float] = lr_scheduler.get_last_lr()
        self._bar = tqdm(disable=True)
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
        batch = self.model.encode(batch).repeat(self.minibatch_repeat)
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
        per_image = masked_mean(error, batch.mask)  # (B,)
        return (per_image * self.objective.loss_weight(timesteps)).sum()

    def train_step(self, group: Group) -> dict[str, Tensor | int]:
        """One optimizer step over the batches of a group; metrics stay tensors, nothing waits.

        The summed losses are divided by the images of the whole step, over accumulation and ranks:
        a short last batch or group counts exactly as much as its images.
        """
        images = sum(len(planned) for planned, _ in group) * self.minibatch_repeat
        total = torch.zeros((), device=self.accelerator.device)
        for position, (planned, batch) in enumerate(group):
            _, is_real = self.batch_sampler.share(planned)  # a rank without an image runs along
            ranks = self.accelerator.num_processes  # gradients are averaged over ranks
            last = position == len(group) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._loss):
                loss = self._loss(batch.to(self.accelerator.device)) * (is_real * ranks / images)
                self.accelerator.backward(loss)
            total += loss.detach()
        metrics: dict[str, Tensor | int] = {"loss": total, "images": images}
        if self.max_grad_norm:
            metrics["grad_norm"] = self.accelerator.clip_grad_norm_(
                self._parameters, self.max_grad_norm
            )
        self._rates = self.lr_scheduler.get_last_lr()
        make_step(self.optimizer, number=self.step)
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics

    def step_groups(self) -> Iterator[Group]:
        """The batches of one optimizer step after another."""
        return step_groups(
            self.loader,
            self.batch_sampler,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )

    def train(self) -> None:
        """Train to `max_train_steps`.

        Raises:
            RunError: the loss or a trained tensor is not finite.
        """
        self.sampler.sample_if_due(self, last=False)
        self._logged_at = time.perf_counter()
        groups = self.step_groups()
        self.optimizer.train()
        shown = self.accelerator.is_main_process
        try:
            self._bar = tqdm(total=self.max_train_steps, desc="training", disable=not shown)
            while self.step < self.max_train_steps:
                self.step += 1
                last = self.step == self.max_train_steps
                metrics = self.train_step(next(groups))
                # The order is fixed: log what was measured, save what was trained, then sample
                # from it.
                self.log(metrics, last=last)
                self.saver.save_if_due(self, last=last)
                self.sampler.sample_if_due(self, last=last)
                self._bar.update()
            self.accelerator.wait_for_everyone()  # nobody leaves while another still writes
        finally:
            self._bar.close()
            if shown:
                self.metrics.plot()
            self.accelerator.end_training()
        logger.info("done: %s", self.directory)

    def log(self, metrics: Mapping[str, Tensor | int], *, last: bool) -> None:
        """Keep a step's metrics; every `log_every` steps write their means (one device sync)."""
        self._since_log.append(metrics)
        if not (last or self.step == 1 or self.step % self.log_every == 0):
            return
        count = len(self._since_log)
        means = {
            key: torch.stack([m[key] for m in self._since_log]).mean()  # type: ignore[misc]
            for key in metrics
            if key != "images"
        }
        means["loss"] = self.accelerator.reduce(means["loss"], "mean")
        record = {key: value.item() for key, value in means.items()}
        now = time.perf_counter()
        seconds, self._logged_at = now - self._logged_at, now
        images = sum(int(m["images"]) for m in self._since_log)
        self._since_log.clear()
        if not self.accelerator.is_main_process:
            return
        rates = zip(self.groups, self._rates, strict=True)
        record |= {f"learning_rate/{group.name}": rate for group, rate in rates}
        record |= {"seconds_per_step": seconds / count, "images_per_second": images / seconds}
        self.metrics.write({"step": self.step, "epoch": self.epoch, **record})
        self.accelerator.log(record, step=self.step)
        self._bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
        if not math.isfinite(record["loss"]) and self.accelerator.scaler is None:
            raise RunError(
                f"step {self.step}: the loss is {record['loss']}; training stops, what was saved "
                "before stays. Lower the learning rate, or check the images of the dataset"
            )

    def log_images(self, key: str, images: Sequence[Image], captions: Sequence[str]) -> None:
        """Send pictures to the trackers that show pictures."""
        for tracker in self.accelerator.trackers:
            show_images(tracker, key, images, captions, step=self.step)

    @property
    def epoch(self) -> int:
        """Finished and begun passes over the dataset at this step, counted from 1."""
        return max(1, -(-self.step // self.steps_per_epoch))

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
