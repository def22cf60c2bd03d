"""What a run will do, in a few lines, before it does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.data_findings import Finding, find_in_data, find_unused, write_findings
from modules.savers import BASE_ENDINGS, output_names
from modules.schedule import total_steps

if TYPE_CHECKING:
    from modules.buckets import BucketBatchSampler
    from modules.held_out import HeldOut
    from modules.models.base import DiffusionModel
    from modules.optimizer import ParameterGroup
    from modules.run_parts import RunParts
    from modules.sections import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Model, trained parameters, data, steps and outputs of a run."""

    model: DiffusionModel
    groups: list[ParameterGroup]
    data: Sequence[str]  # the dataset in a few lines
    prior: Any | None  # class images, if there are any
    held_out: str | None  # images that are not trained on, if there are any
    images: str  # of the dataset that are trained on, times their repeats
    findings: Sequence[Finding]  # what a person should know of the images
    batches: int
    batch_size: int
    minibatch_repeat: int
    gradient_accumulation_steps: int
    steps_per_epoch: int
    max_train_steps: int
    outputs: Sequence[str]  # names of the weights in the run's folder

    def show(self, directory: Path, *, details: Path | None = None) -> None:
        """Log the plan; `directory` is the run's folder, `details` takes what lines leave out."""
        for line in self.lines(directory):
            logger.info("%s", line)
        if details is not None and any(f.is_cut for f in self.findings if not f.is_of_run):
            write_findings(details, self.findings)
            logger.info("data       all of these are listed in %s", details)

    def lines(self, directory: Path) -> list[str]:
        """The plan as text."""
        model = self.model
        lines = [f"model      {model.path} ({model.describe()})"]
        for group in self.groups:
            lines.append(
                f"trained    {group.name}: {group.count:,} parameters in {len(group.parameters)} "
                f"tensors, learning rate {group.learning_rate:g}"
            )
        lines += [f"data       {line}" for line in self.data]
        lines += [f"data       {finding.line()}" for finding in self.findings]
        if self.prior is not None:
            lines.append(f"prior      {len(self.prior)} images of the class, a batch beside each")
        if self.held_out is not None:
            lines.append(f"held out   {self.held_out}")
        accumulation, repeats = self.gradient_accumulation_steps, self.minibatch_repeat
        lines.append(
            f"steps      {self.images} -> {self.batches} batches of up to {self.batch_size} "
            "an epoch"
            + (f" (each image {repeats} times)" if repeats > 1 else "")
            + (f", {accumulation} batches a step" if accumulation > 1 else "")
            + f" -> {self.steps_per_epoch} optimizer steps an epoch, {self.max_train_steps} in all"
            f" ({self.max_train_steps / self.steps_per_epoch:.1f} epochs)"
        )
        lines.append(f"output     {directory}: {', '.join(self.outputs)}")
        return lines


def plan_run(
    config: Config, parts: RunParts, batch_sampler: BucketBatchSampler, held_out: HeldOut
) -> Plan:
    """The plan of a run with these parts.

    Raises:
        ValueError: a caption that it shows can't be read.
    """
    train = config.train
    steps_per_epoch = -(-len(batch_sampler) // train.gradient_accumulation_steps)
    max_train_steps = total_steps(
        max_train_steps=train.max_train_steps,
        max_train_epochs=train.max_train_epochs,
        steps_per_epoch=steps_per_epoch,
    )
    batches = max_train_steps * train.gradient_accumulation_steps
    unused = find_unused(parts.dataset, batch_sampler, batches)
    return Plan(
        model=parts.model,
        groups=parts.groups,
        data=_describe(parts.dataset),
        prior=parts.prior,
        held_out=held_out.summary() if config.validation else None,
        images=describe_images(batch_sampler, len(parts.dataset)),
        findings=[*find_in_data(parts.dataset), *([unused] if unused else [])],
        batches=len(batch_sampler),
        batch_size=train.batch_size,
        minibatch_repeat=train.minibatch_repeat,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        steps_per_epoch=steps_per_epoch,
        max_train_steps=max_train_steps,
        outputs=output_names(
            str(config.save.name),
            {n: parts.networks[n] for n, section in config.networks.items() if section.train},
            trains_base=bool(parts.trained_base),
            versions=_versions(config),
            base_ending=BASE_ENDINGS[config.save.format],
        ),
    )


def describe_images(sampler: BucketBatchSampler, images: int) -> str:
    """How many of a dataset's images an epoch has and how often: "8 images x 10 = 80"."""
    indices = np.concatenate([np.arange(0), *sampler.buckets])
    counts = np.bincount(indices % images, minlength=images)
    often = np.unique(counts[counts > 0]).tolist()
    count = f"{np.count_nonzero(counts)} images"
    if often == [1]:
        return count
    return f"{count} x {often[0] if len(often) == 1 else 'their repeats'} = {len(indices)}"


def _describe(dataset: Any) -> list[str]:
    """What a dataset says of itself, line by line."""
    if not hasattr(dataset, "summary"):
        return [f"{len(dataset)} images"]
    summary = dataset.summary()
    return summary.splitlines() if isinstance(summary, str) else list(summary)


def _versions(config: Config) -> list[str]:
    """What is added to the names of what is written, but for saves on the way."""
    versions = ["", "-ema"] if config.ema and config.ema.save == "beside" else [""]
    keeps_best = config.validation is not None and config.validation.keep_best
    return versions + ([f"{version}-best" for version in versions] if keeps_best else [])
