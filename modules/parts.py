"""The parts of a trainer out of their sections of the config: checked, then built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modules.component import accepts, argument_faults, build
from modules.config import Config, LrSchedulerConfig, NetworkConfig
from modules.contracts import lacking_methods
from modules.errors import ConfigError
from modules.hardware import precision_fault
from modules.hints import nearest
from modules.models.base import DiffusionModel
from modules.optimizer import (
    ParameterGroup,
    base_parameters,
    check_rates,
    learning_rate_schedule,
    make_groups,
)
from modules.optimizer_class import make_optimizer, optimizer_faults, warn_of_low_rate
from modules.protocols import Network, Run
from modules.schedule import warmup_steps

logger = logging.getLogger(__name__)


def check_components(config: Config) -> None:
    """Check every component's arguments against its signature, and what this machine can do.

    Raises:
        ConfigError: lists all faults.
    """
    faults: list[str] = []
    for number, step in enumerate(config.prepare):
        faults += argument_faults(f"prepare.{number}", step.module, step.args)
    section = config.dataset
    faults += argument_faults("dataset", section.module, section.args, supplied={"seed"})
    for name, network in config.networks.items():
        faults += argument_faults(f"networks.{name}", network.module, network.args)
    objective = config.objective
    if objective.module is not None:
        faults += argument_faults("objective", objective.module, objective.args, {"scheduler"})
    optimizer = config.optimizer
    faults += optimizer_faults(optimizer.module, optimizer.args)
    given = _saver_arguments(config)
    faults += argument_faults("save", config.save.module, config.save.args, given)
    if config.sample is not None:
        given = _sampler_arguments(config)
        faults += argument_faults("sample", config.sample.module, config.sample.args, given)
    faults += lacking_methods(config)
    precision = precision_fault(config.train.mixed_precision)
    if precision:
        faults.append(precision)
    faults += _logger_faults(config)
    if not faults:  # what only the classes themselves can judge: ranks, prompts, intervals
        for name, network in config.networks.items():
            faults += _trial(f"networks.{name}", partial(build, network.module, network.args))
        faults += _trial("save", partial(build_saver, config))
        faults += _trial("sample", partial(build_sampler, config))
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"{config.save.name}: the config asks for what can't be done:{listed}")


def _trial(where: str, action: Callable[[], Any]) -> list[str]:
    """The fault that `action` finds, if any."""
    try:
        action()
    except ValueError as error:
        return [f"{where}: {error}"]
    return []


def _logger_faults(config: Config) -> list[str]:
    if not config.loggers:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return [
        f"loggers.{name}: there is no such logger{nearest(name, LOGGER_TYPE_TO_CLASS)}"
        for name in config.loggers
        if name not in LOGGER_TYPE_TO_CLASS
    ]


def build_dataset(config: Config) -> Any:
    """The dataset; `buckets` is added to a plain one, whose images then have one size."""
    section = config.dataset
    seed = {"seed": config.train.seed} if accepts(section.module, "seed") else {}
    dataset = build(section.module, section.args, **seed)
    if len(dataset) == 0:
        raise ValueError(f"{section.module} has no images")
    if not hasattr(dataset, "buckets"):
        dataset.buckets = [list(range(len(dataset)))]
    return dataset


def select_trained(config: Config, model: DiffusionModel) -> Mapping[str, torch.nn.Parameter]:
    """Freeze the base, but for what `model.trainable` names; returns that by module path."""
    for component in model.components().values():
        component.requires_grad_(False)
    if model.vae is not None:
        model.vae.requires_grad_(False)
    trained = model.parameters_matching(config.model.trainable)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def build_network(section: NetworkConfig, dataset: Any, model: DiffusionModel) -> Network:
    """A network, attached to the model, resumed and frozen as its section says."""
    network = build(section.module, section.args)
    provided = set(getattr(dataset, "provides", ()))
    for key in getattr(network, "requires", ()):
        if key not in provided:
            raise ValueError(
                f"needs {key!r} in every batch, but the dataset provides "
                f"{', '.join(sorted(provided)) or 'captions only'}; add `{key}: npz`, or "
                f"`{key}: image`, to dataset.args.extras"
            )
    if hasattr(network, "check_dataset"):
        network.check_dataset(dataset)
    network.attach(model)
    if section.resume is not None:
        network.load(Path(section.resume))
    network.requires_grad_(section.train)
    return network


def parameter_groups(
    config: Config,
    model: DiffusionModel,
    trained_base: Mapping[str, torch.nn.Parameter],
    networks: Mapping[str, Network],
) -> list[ParameterGroup]:
    """What is trained, with its learning rates."""
    shared, where = config.train.learning_rate, "train.learning_rate"
    by_component = base_parameters(trained_base, model.components())
    groups = make_groups(by_component, shared, where=where)
    sharing = set(by_component)
    for name, network in networks.items():
        section = config.networks[name]
        if not section.train:
            continue
        own_components, own = network.parameter_groups(), section.learning_rate
        if own is None:
            groups += make_groups(own_components, shared, owner=name, where=where)
            sharing |= set(own_components)
        else:
            own_where = f"networks.{name}.learning_rate"
            check_rates(own, own_components, where=own_where)
            groups += make_groups(own_components, own, owner=name, where=own_where)
    check_rates(shared, sharing, where=where)
    if not any(group.parameters for group in groups):
        raise ValueError("networks: they have no parameters to train")
    warn_of_low_rate(config.optimizer.module, groups)
    return groups


def build_objective(config: Config, model: DiffusionModel) -> Any:
    """The objective of the config, or the one that the checkpoint was trained with."""
    section = config.objective
    path = section.module
    if path is None:
        default = model.default_objective()
        path = f"{default.__module__}.{default.__name__}"
        faults = argument_faults("objective", path, section.args, {"scheduler"})
        if faults:
            raise ConfigError("\n".join(faults))
    objective = build(path, section.args, scheduler=model.scheduler)
    scheduler = getattr(objective, "scheduler", model.scheduler)
    told, trained = (s.config.prediction_type for s in (model.scheduler, scheduler))
    if told != trained:
        logger.warning(
            "objective: trains %s prediction, but %s says of itself that it predicts %s; take "
            "objective.module out if that is not what you want",
            trained,
            model.path,
            told,
        )
    model.use_scheduler(scheduler)
    return objective


def build_optimizer(config: Config, groups: list[ParameterGroup]) -> Any:
    """The optimizer over all parameter groups."""
    return make_optimizer(config.optimizer.module, config.optimizer.args, groups)


def build_schedule(section: LrSchedulerConfig, optimizer: Any, *, total: int) -> Any:
    """The learning-rate schedule over `total` optimizer steps."""
    warmup = warmup_steps(steps=section.warmup_steps, ratio=section.warmup_ratio, total=total)
    if warmup >= total:
        logger.warning(
            "lr_scheduler: the warm-up of %d steps is not over when the run ends after %d",
            warmup,
            total,
        )
    return learning_rate_schedule(
        optimizer,
        name=section.name,
        warmup_steps=warmup,
        total_steps=total,
        num_cycles=section.num_cycles,
        power=section.power,
    )


def build_saver(config: Config) -> Any:
    """The saver; one of a person's own gets those of the section's values that it takes."""
    module = config.save.module
    given = {k: v for k, v in _saver_arguments(config).items() if accepts(module, k)}
    return build(module, config.save.args, **given)


def build_sampler(config: Config) -> Any:
    """The sampler, or one that draws nothing."""
    if config.sample is None:
        return NoSamples()
    module = config.sample.module
    given = {k: v for k, v in _sampler_arguments(config).items() if accepts(module, k)}
    return build(module, config.sample.args, **given)


class NoSaves:
    """The saver of a process that is not the first of several."""

    def save_if_due(self, run: Run, *, last: bool) -> None:
        """Write nothing."""


class NoSamples:
    """The sampler of a run without validation images."""

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw nothing."""


def _saver_arguments(config: Config) -> dict[str, Any]:
    return _arguments(config.save, without=("name", "directory"))


def _sampler_arguments(config: Config) -> dict[str, Any]:
    return _arguments(config.sample)


def _arguments(section: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A section's own values, which are arguments of its component."""
    return {k: v for k, v in vars(section).items() if k not in ("module", "args", *without)}
