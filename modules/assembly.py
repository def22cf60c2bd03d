"""From a config to a trainer: checks first, then data, then weights, then the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.buckets import BucketBatchSampler
from modules.component import accepts, argument_faults, build
from modules.config import Config, ConfigError, to_yaml
from modules.engine import create_accelerator, prepare_modules, set_attention
from modules.hardware import precision_fault, warn_of_cpu_build
from modules.models import load
from modules.models.base import DiffusionModel
from modules.optimizer import (
    ParameterGroup,
    as_optimizer_groups,
    base_groups,
    learning_rate_schedule,
    network_groups,
)
from modules.plan import Plan
from modules.protocols import Network
from modules.run_folder import create_run_folder, next_run_folder
from modules.schedule import total_steps, warmup_steps
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
    warn_of_cpu_build()
    if config.prepare and check and not _is_prepared(config):
        logger.info("the dataset is not prepared yet; training would begin with:")
        for step in config.prepare:
            logger.info("  %s", step.module)
        return None
    if not check:
        _prepare(config)
    torch.manual_seed(config.train.seed)

    dataset = _explained("dataset", lambda: _build_dataset(config))
    model = _explained(
        "model", lambda: load(config.model.path, vae=config.model.vae, weights=not check)
    )
    if hasattr(dataset, "check_latent_shapes"):
        _explained(
            "dataset",
            lambda: dataset.check_latent_shapes(model.vae_scale_factor, model.latent_channels),
        )
    networks = {name: _build_network(name, config, dataset, model) for name in config.networks}
    trained_base = _select_trained(config, model)
    groups = _explained("learning rates", lambda: _parameter_groups(config, model, networks))
    sampler = _explained("sample", lambda: _build_sampler(config, model))
    objective = _explained("objective", lambda: _build_objective(config, model))

    accelerator = None if check else create_accelerator(config.train.mixed_precision)
    batch_sampler = BucketBatchSampler(
        dataset.buckets,
        batch_size=config.train.batch_size,
        shuffle=config.dataset.shuffle,
        seed=config.train.seed,
        rank=accelerator.process_index if accelerator else 0,
        world_size=accelerator.num_processes if accelerator else 1,
    )
    steps_per_epoch = -(-len(batch_sampler) // config.train.gradient_accumulation_steps)
    steps = total_steps(
        max_train_steps=config.train.max_train_steps,
        max_train_epochs=config.train.max_train_epochs,
        steps_per_epoch=steps_per_epoch,
    )
    name, parent = str(config.save.name), Path(config.save.directory)
    plan = Plan(
        model=model,
        groups=groups,
        dataset=dataset,
        batches=len(batch_sampler),
        steps_per_epoch=steps_per_epoch,
        max_train_steps=steps,
        config=config,
    )
    if accelerator is None:
        plan.show(next_run_folder(parent, name))
        return None

    directory = _shared_run_folder(accelerator, parent, name)
    if accelerator.is_main_process:
        plan.show(directory)
        (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    _start_trackers(config, accelerator, directory)
    prepare_modules(
        model,
        networks,
        device=accelerator.device,
        mixed_precision=config.train.mixed_precision,
        gradient_checkpointing=config.train.gradient_checkpointing,
    )
    set_attention(model, config.train.attention)
    optimizer = _explained("optimizer", lambda: _build_optimizer(config, groups))
    lr_scheduler = learning_rate_schedule(
        optimizer,
        name=config.lr_scheduler.name,
        warmup_steps=warmup_steps(
            steps=config.lr_scheduler.warmup_steps,
            ratio=config.lr_scheduler.warmup_ratio,
            total=steps,
        ),
        total_steps=steps,
        num_cycles=config.lr_scheduler.num_cycles,
        power=config.lr_scheduler.power,
    )
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=config.dataset.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    torch.manual_seed(config.train.seed + accelerator.process_index)
    return Trainer(
        name=name,
        directory=directory,
        model=model,
        networks=networks,
        trained_base=trained_base,
        groups=groups,
        objective=objective,
        loader=loader,
        batch_sampler=batch_sampler,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        accelerator=accelerator,
        saver=_explained("save", lambda: _build_saver(config)),
        sampler=sampler,
        max_train_steps=steps,
        steps_per_epoch=steps_per_epoch,
        gradient_accumulation_steps=config.train.gradient_accumulation_steps,
        max_grad_norm=config.train.max_grad_norm,
        log_every=config.train.log_every,
    )


def check_components(config: Config) -> None:
    """Check every component's arguments against its signature, and the machine's abilities.

    Raises:
        ConfigError: lists all faults.
    """
    faults: list[str] = []
    for number, step in enumerate(config.prepare):
        faults += argument_faults(f"prepare.{number}", step.module, step.args)
    faults += argument_faults(
        "dataset", config.dataset.module, config.dataset.args, supplied={"seed"}
    )
    for name, network in config.networks.items():
        faults += argument_faults(f"networks.{name}", network.module, network.args)
    if config.objective.module is not None:
        faults += argument_faults(
            "objective", config.objective.module, config.objective.args, supplied={"scheduler"}
        )
    faults += argument_faults(
        "optimizer", config.optimizer.module, config.optimizer.args, supplied={"params", "lr"}
    )
    faults += argument_faults(
        "save", config.save.module, config.save.args, supplied=_saver_arguments(config)
    )
    if config.sample is not None:
        supplied = _sampler_arguments(config)
        faults += argument_faults("sample", config.sample.module, config.sample.args, supplied)
    precision = precision_fault(config.train.mixed_precision)
    if precision:
        faults.append(precision)
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"{config.save.name}: the config asks for what can't be done:{listed}")


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
    for number, step in enumerate(config.prepare):
        result = _explained(f"prepare.{number}", lambda step=step: build(step.module, step.args))
        failed = getattr(result, "failed", None)
        if failed:
            raise ConfigError(f"prepare.{number}: {step.module} failed for {len(failed)} files")


def _build_dataset(config: Config) -> Any:
    section = config.dataset
    seed = {"seed": config.train.seed} if accepts(section.module, "seed") else {}
    dataset = build(section.module, section.args, **seed)
    if not hasattr(dataset, "buckets"):
        dataset.buckets = [list(range(len(dataset)))]  # a plain Dataset: all images one size
    return dataset


def _build_network(name: str, config: Config, dataset: Any, model: DiffusionModel) -> Network:
    section = config.networks[name]

    def action() -> Network:
        network = build(section.module, section.args)
        missing = set(network.requires) - set(getattr(dataset, "provides", ()))
        if missing:
            raise ValueError(_missing_extras(missing, dataset))
        network.attach(model)
        if section.resume is not None:
            network.load(Path(section.resume))
        network.requires_grad_(section.train)
        return network

    return _explained(f"networks.{name}", action)


def _missing_extras(missing: set[str], dataset: Any) -> str:
    provided = ", ".join(sorted(getattr(dataset, "provides", ()))) or "nothing besides captions"
    key = sorted(missing)[0]
    return (
        f"needs {key!r} in every batch, but the dataset provides {provided}; "
        f"add `{key}:` to dataset.args.extras"
    )


def _select_trained(config: Config, model: DiffusionModel) -> Mapping[str, torch.nn.Parameter]:
    for component in model.components().values():
        component.requires_grad_(False)
    if model.vae is not None:
        model.vae.requires_grad_(False)
    trained = _explained(
        "model.trainable", lambda: model.parameters_matching(config.model.trainable)
    )
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def _parameter_groups(
    config: Config, model: DiffusionModel, networks: Mapping[str, Network]
) -> list[ParameterGroup]:
    trained = model.parameters_matching(config.model.trainable)
    trains_networks = any(section.train for section in config.networks.values())
    rate = config.train.learning_rate
    groups = base_groups(trained, model.components(), rate) if trained else []
    for name, network in networks.items():
        section = config.networks[name]
        if not section.train:
            continue
        own = section.learning_rate
        where = f"networks.{name}.learning_rate" if own is not None else "train.learning_rate"
        groups += network_groups(name, network, rate if own is None else own, where=where)
    if not groups:
        hint = "the networks have no parameters" if trains_networks else "nothing is trained"
        raise ValueError(hint)
    return groups


def _build_objective(config: Config, model: DiffusionModel) -> Any:
    section = config.objective
    if section.module is not None:
        return build(section.module, section.args, scheduler=model.scheduler)
    default = model.default_objective()
    path = f"{default.__module__}.{default.__name__}"
    faults = argument_faults("objective", path, section.args, supplied={"scheduler"})
    if faults:
        raise ConfigError("\n".join(faults))
    return build(path, section.args, scheduler=model.scheduler)


def _build_optimizer(config: Config, groups: list[ParameterGroup]) -> Any:
    return build(config.optimizer.module, config.optimizer.args, as_optimizer_groups(groups))


def _saver_arguments(config: Config) -> dict[str, Any]:
    save = config.save
    return {
        "every_epochs": save.every_epochs,
        "every_steps": save.every_steps,
        "keep_last": save.keep_last,
        "dtype": save.dtype,
    }


def _build_saver(config: Config) -> Any:
    module, given = config.save.module, _saver_arguments(config)
    given = {key: value for key, value in given.items() if accepts(module, key)}
    return build(module, config.save.args, **given)


def _sampler_arguments(config: Config) -> dict[str, Any]:
    assert config.sample is not None
    return {k: v for k, v in vars(config.sample).items() if k not in ("module", "args")}


def _build_sampler(config: Config, model: DiffusionModel) -> Any:
    if config.sample is None:
        return NoSamples()
    module, given = config.sample.module, _sampler_arguments(config)
    given = {key: value for key, value in given.items() if accepts(module, key)}
    sampler = build(module, config.sample.args, **given)
    if hasattr(sampler, "check"):
        sampler.check(model)
    return sampler


class NoSamples:
    """The sampler of a run without validation images."""

    def sample_if_due(self, run: Any, *, last: bool) -> None:
        """Draw nothing."""


def _shared_run_folder(accelerator: Accelerator, parent: Path, name: str) -> Path:
    """Rank 0 makes the folder, all ranks use it."""
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None]
    if accelerator.is_main_process:
        made = [str(_explained("save", lambda: create_run_folder(parent, name)))]
    return Path(broadcast_object_list(made)[0])


def _start_trackers(config: Config, accelerator: Accelerator, directory: Path) -> None:
    from modules.trackers import start_trackers

    start_trackers(
        accelerator,
        config.loggers,
        directory=directory,
        run_name=str(config.save.name),
        settings=to_yaml(config),
    )
