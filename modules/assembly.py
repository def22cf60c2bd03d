"""From a config to a trainer: checks first, then data, then weights, then the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modules.buckets import BucketBatchSampler
from modules.component_checks import check_components
from modules.config import Config, to_yaml
from modules.engine import create_accelerator, prepare_modules, set_attention
from modules.errors import explained
from modules.files import write_atomically
from modules.hardware import warn_of_cpu_build
from modules.idle_settings import idle_settings
from modules.loading import Source, make_source
from modules.models import load
from modules.models.base import DiffusionModel
from modules.optimizer import ParameterGroup
from modules.parts import (
    NoSamples,
    NoSaves,
    build_average,
    build_dataset,
    build_network,
    build_objective,
    build_optimizer,
    build_sampler,
    build_saver,
    build_schedule,
    parameter_groups,
    select_trained,
)
from modules.plan import Plan
from modules.preparation import is_prepared, prepare
from modules.protocols import Network
from modules.run_folder import create_run_folder, next_run_folder
from modules.savers import output_names
from modules.schedule import total_steps
from modules.text_stop import check_text_stop, text_parameters
from modules.token_merging import merge_tokens
from modules.trackers import start_trackers
from modules.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Parts:
    """What a run works on, loaded and frozen as the config says."""

    dataset: Any
    prior: Any | None
    model: DiffusionModel
    trained_base: Mapping[str, torch.nn.Parameter]
    networks: Mapping[str, Network]
    groups: list[ParameterGroup]
    objective: Any
    sampler: Any


def assemble(config: Config, *, check: bool = False) -> Trainer | None:
    """Build the trainer of a config; with `check` only show what it would do.

    Raises:
        ConfigError: an argument, the dataset or the model does not fit; nothing was written then.
    """
    check_components(config)
    for line in idle_settings(config):
        logger.warning("%s", line)
    warn_of_cpu_build()
    if not check:
        return _assemble_run(config, create_accelerator(config.train.mixed_precision))
    if config.prepare and not is_prepared(config):
        listed = "".join(f"\n  {step.module}" for step in config.prepare)
        logger.info("the dataset is not there yet; a run begins by preparing it:%s", listed)
        return None
    parts = _load_parts(config, weights=False)
    plan = _make_plan(config, parts, _batch_sampler(config, parts.dataset, rank=0, world_size=1))
    plan.show(next_run_folder(Path(config.save.directory), str(config.save.name)))
    return None


def _assemble_run(config: Config, accelerator: Accelerator) -> Trainer:
    train, is_main = config.train, accelerator.is_main_process
    if is_main:
        prepare(config)
    accelerator.wait_for_everyone()
    parts = _load_parts(config, weights=True)
    batch_sampler = _batch_sampler(
        config, parts.dataset, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    plan = _make_plan(config, parts, batch_sampler)
    prepare_modules(
        parts.model,
        parts.networks,
        device=accelerator.device,
        mixed_precision=train.mixed_precision,
        gradient_checkpointing=train.gradient_checkpointing,
    )
    set_attention(parts.model, parts.networks, train.attention)
    if train.tome_ratio:
        explained("", partial(merge_tokens, parts.model.denoiser, train.tome_ratio))
    optimizer = explained("optimizer", lambda: build_optimizer(config, parts.groups))
    saver = explained("save", lambda: build_saver(config))
    directory = explained("", lambda: _shared_run_folder(config, accelerator))
    if is_main:
        plan.show(directory)
        settings = to_yaml(config)
        write_atomically(directory / "config.yaml", settings)
        start_trackers(
            accelerator,
            config.loggers,
            directory=directory,
            run_name=directory.name,
            settings=settings,
        )
    torch.manual_seed(train.seed + accelerator.process_index)
    return Trainer(
        name=str(config.save.name),
        directory=directory,
        model=parts.model,
        networks=parts.networks,
        trained_base=parts.trained_base,
        groups=parts.groups,
        objective=parts.objective,
        source=make_source(
            parts.dataset,
            batch_sampler,
            repeats=train.minibatch_repeat,
            num_workers=config.dataset.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        ),
        prior=_prior_source(config, parts.prior, accelerator),
        average=build_average(config.ema, parts.groups),
        stop_text_encoders_after=train.stop_text_encoders_after,
        optimizer=optimizer,
        lr_scheduler=build_schedule(config.lr_scheduler, optimizer, total=plan.max_train_steps),
        accelerator=accelerator,
        saver=saver if is_main else NoSaves(),
        sampler=parts.sampler if is_main else NoSamples(),
        max_train_steps=plan.max_train_steps,
        steps_per_epoch=plan.steps_per_epoch,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        log_every=train.log_every,
    )


def _load_parts(config: Config, *, weights: bool) -> _Parts:
    """Data first, then the model, then what is attached to it."""
    torch.manual_seed(config.train.seed)
    datasets: dict[str, Any] = {}
    for name, part in (("dataset", config.dataset), ("prior", config.prior)):
        if part is not None:
            action = partial(build_dataset, part, seed=config.train.seed)
            datasets[name] = explained(name, action)
    section = config.model
    model = explained("model", lambda: load(section.path, vae=section.vae, weights=weights))
    for name, dataset in datasets.items():
        if hasattr(dataset, "check_latent_shapes"):
            sizes = (model.vae_scale_factor, model.latent_channels)
            explained(name, partial(dataset.check_latent_shapes, *sizes))
    trained_base = explained("model.trainable", lambda: select_trained(config, model))
    networks = {}
    for name, network in config.networks.items():
        action = partial(build_network, network, datasets, model)
        networks[name] = explained(f"networks.{name}", action)
    for name, dataset in datasets.items():
        if hasattr(dataset, "check_text_cache"):
            explained(name, partial(dataset.check_text_cache, model, networks))
    sampler = explained("sample", lambda: build_sampler(config))
    if hasattr(sampler, "prepare"):
        dataset = datasets["dataset"]
        action = partial(sampler.prepare, model=model, networks=networks, dataset=dataset)
        explained("sample", action)
    groups = explained("", lambda: parameter_groups(config, model, trained_base, networks))
    trained = [parameter for group in groups for parameter in group.parameters]
    text = text_parameters(trained_base, networks.values())
    after = config.train.stop_text_encoders_after
    explained("train", lambda: check_text_stop(after, trained, text))
    return _Parts(
        dataset=datasets["dataset"],
        prior=datasets.get("prior"),
        model=model,
        trained_base=trained_base,
        networks=networks,
        groups=groups,
        objective=explained("objective", lambda: build_objective(config, model)),
        sampler=sampler,
    )


def _batch_sampler(
    config: Config, dataset: Any, *, rank: int, world_size: int
) -> BucketBatchSampler:
    return BucketBatchSampler(
        dataset.buckets,
        batch_size=config.train.batch_size // config.train.minibatch_repeat,
        shuffle=config.dataset.shuffle,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
    )


def _prior_source(config: Config, dataset: Any | None, accelerator: Accelerator) -> Source | None:
    if config.prior is None or dataset is None:
        return None
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return make_source(
        dataset,
        _batch_sampler(config, dataset, rank=rank, world_size=world_size),
        weight=config.prior.loss_weight,
        repeats=config.train.minibatch_repeat,
        num_workers=config.prior.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _make_plan(config: Config, parts: _Parts, batch_sampler: BucketBatchSampler) -> Plan:
    train = config.train
    steps_per_epoch = -(-len(batch_sampler) // train.gradient_accumulation_steps)
    return Plan(
        model=parts.model,
        groups=parts.groups,
        dataset=parts.dataset,
        prior=parts.prior,
        batches=len(batch_sampler),
        batch_size=train.batch_size,
        minibatch_repeat=train.minibatch_repeat,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        steps_per_epoch=steps_per_epoch,
        max_train_steps=total_steps(
            max_train_steps=train.max_train_steps,
            max_train_epochs=train.max_train_epochs,
            steps_per_epoch=steps_per_epoch,
        ),
        outputs=output_names(
            str(config.save.name),
            {n: parts.networks[n] for n, section in config.networks.items() if section.train},
            trains_base=bool(parts.trained_base),
            versions=["", "-ema"] if config.ema and config.ema.save == "beside" else [""],
        ),
    )


def _shared_run_folder(config: Config, accelerator: Accelerator) -> Path:
    """The run's folder, made by rank 0 and known to all."""
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None]
    if accelerator.is_main_process:
        made = [str(create_run_folder(Path(config.save.directory), str(config.save.name)))]
    return Path(broadcast_object_list(made)[0])
