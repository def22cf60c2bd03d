"""From a config to a trainer: checks first, then data, then weights, then the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.buckets import BucketBatchSampler
from modules.component import build
from modules.config import Config, to_yaml
from modules.engine import create_accelerator, prepare_modules, set_attention
from modules.errors import ConfigError
from modules.hardware import warn_of_cpu_build
from modules.idle_settings import idle_settings
from modules.models import load
from modules.optimizer import learning_rate_schedule
from modules.parts import (
    NoSamples,
    NoSaves,
    build_dataset,
    build_network,
    build_objective,
    build_optimizer,
    build_sampler,
    build_saver,
    check_components,
    parameter_groups,
    select_trained,
)
from modules.plan import Plan
from modules.run_folder import create_run_folder, next_run_folder
from modules.schedule import total_steps, warmup_steps
from modules.trackers import start_trackers
from modules.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def assemble(config: Config, *, check: bool = False) -> Trainer | None:
    """Build the trainer of a config; with `check` only show what it would do.

    Raises:
        ConfigError: an argument, the dataset or the model does not fit; nothing was written then.
    """
    check_components(config)
    for line in idle_settings(config):
        logger.warning("%s", line)
    warn_of_cpu_build()
    if check and config.prepare and not _is_prepared(config):
        listed = "".join(f"\n  {step.module}" for step in config.prepare)
        logger.info("the dataset is not there yet; a run begins by preparing it:%s", listed)
        return None
    accelerator = None if check else create_accelerator(config.train.mixed_precision)
    if accelerator is not None:
        if accelerator.is_main_process:
            _prepare(config)
        accelerator.wait_for_everyone()

    torch.manual_seed(config.train.seed)
    train = config.train
    dataset = _explained("dataset", lambda: build_dataset(config))
    model = _explained(
        "model", lambda: load(config.model.path, vae=config.model.vae, weights=not check)
    )
    if hasattr(dataset, "check_latent_shapes"):
        scale, channels = model.vae_scale_factor, model.latent_channels
        _explained("dataset", lambda: dataset.check_latent_shapes(scale, channels))
    trained_base = _explained("model.trainable", lambda: select_trained(config, model))
    networks = {}
    for name, section in config.networks.items():
        action = partial(build_network, section, dataset, model)
        networks[name] = _explained(f"networks.{name}", action)
    groups = _explained("train", lambda: parameter_groups(config, model, trained_base, networks))
    sampler = _explained("sample", lambda: build_sampler(config))
    if hasattr(sampler, "check"):
        _explained("sample", lambda: sampler.check(model))
    objective = _explained("objective", lambda: build_objective(config, model))

    batch_sampler = BucketBatchSampler(
        dataset.buckets,
        batch_size=train.batch_size,
        shuffle=config.dataset.shuffle,
        seed=train.seed,
        rank=accelerator.process_index if accelerator else 0,
        world_size=accelerator.num_processes if accelerator else 1,
    )
    steps_per_epoch = -(-len(batch_sampler) // train.gradient_accumulation_steps)
    steps = total_steps(
        max_train_steps=train.max_train_steps,
        max_train_epochs=train.max_train_epochs,
        steps_per_epoch=steps_per_epoch,
    )
    name, parent = str(config.save.name), Path(config.save.directory)
    plan = Plan(
        model=model,
        groups=groups,
        dataset=dataset,
        batches=len(batch_sampler),
        batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        steps_per_epoch=steps_per_epoch,
        max_train_steps=steps,
    )
    if accelerator is None:
        plan.show(next_run_folder(parent, name))
        return None

    prepare_modules(
        model,
        networks,
        device=accelerator.device,
        mixed_precision=train.mixed_precision,
        gradient_checkpointing=train.gradient_checkpointing,
    )
    set_attention(model, train.attention)
    optimizer = _explained("optimizer", lambda: build_optimizer(config, groups))
    schedule = config.lr_scheduler
    lr_scheduler = learning_rate_schedule(
        optimizer,
        name=schedule.name,
        warmup_steps=warmup_steps(
            steps=schedule.warmup_steps, ratio=schedule.warmup_ratio, total=steps
        ),
        total_steps=steps,
        num_cycles=schedule.num_cycles,
        power=schedule.power,
    )
    saver = _explained("save", lambda: build_saver(config))

    directory = _explained("save", lambda: _shared_run_folder(accelerator, parent, name))
    if accelerator.is_main_process:
        plan.show(directory)
        (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        start_trackers(
            accelerator,
            config.loggers,
            directory=directory,
            run_name=directory.name,
            settings=to_yaml(config),
        )
    torch.manual_seed(train.seed + accelerator.process_index)
    return Trainer(
        name=name,
        directory=directory,
        model=model,
        networks=networks,
        trained_base=trained_base,
        groups=groups,
        objective=objective,
        loader=DataLoader(
            dataset,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=config.dataset.num_workers,
            persistent_workers=config.dataset.num_workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        ),
        batch_sampler=batch_sampler,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        accelerator=accelerator,
        saver=saver if accelerator.is_main_process else NoSaves(),
        sampler=sampler if accelerator.is_main_process else NoSamples(),
        max_train_steps=steps,
        steps_per_epoch=steps_per_epoch,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        log_every=train.log_every,
    )


def _explained(where: str, action: Callable[[], Result]) -> Result:
    """Run `action`; what it finds wrong becomes one message for the person."""
    try:
        return action()
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _is_prepared(config: Config) -> bool:
    path = config.dataset.args.get("path")
    return isinstance(path, str) and Path(path).is_dir()


def _prepare(config: Config) -> None:
    """Call the functions of `prepare`; each skips what an earlier run has finished."""
    for number, step in enumerate(config.prepare):
        result: Any = _explained(f"prepare.{number}", partial(build, step.module, step.args))
        failed = getattr(result, "failed", ())
        if failed:
            listed = "".join(f"\n  {failure}" for failure in failed)
            raise ConfigError(f"prepare.{number}: {step.module} failed for:{listed}")


def _shared_run_folder(accelerator: Accelerator, parent: Path, name: str) -> Path:
    """The run's folder, made by rank 0 and known to all."""
    from accelerate.utils import broadcast_object_list

    made = [str(create_run_folder(parent, name)) if accelerator.is_main_process else None]
    return Path(str(broadcast_object_list(made)[0]))
