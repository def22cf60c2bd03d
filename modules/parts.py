"""The parts of a trainer, built out of their sections of the config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modules.averaging import MovingAverage
from modules.component import accepts, argument_faults, build
from modules.errors import ConfigError
from modules.guides import side_inputs
from modules.models.base import DiffusionModel
from modules.models.model import Model
from modules.optimizer import (
    ParameterGroup,
    check_rates,
    learning_rate_schedule,
    make_groups,
    trained_of,
)
from modules.optimizer_class import make_optimizer, warn_of_low_rate
from modules.protocols import Network, Run
from modules.save_section import OF_THE_RUN
from modules.schedule import warmup_steps
from modules.sections import (
    Config,
    DatasetConfig,
    EmaConfig,
    LrSchedulerConfig,
    NetworkConfig,
    PriorConfig,
    ValidationConfig,
)

logger = logging.getLogger(__name__)


def build_dataset(section: DatasetConfig | PriorConfig | ValidationConfig, *, seed: int) -> Any:
    """A dataset; `buckets` is added to a plain one, whose images then have one size."""
    given = {"seed": seed} if accepts(section.module, "seed") else {}
    dataset = build(section.module, section.args, **given)
    if len(dataset) == 0:
        raise ValueError(f"{section.module} has no images")
    if not hasattr(dataset, "buckets"):
        dataset.buckets = [list(range(len(dataset)))]
    return dataset


def select_trained(config: Config, model: Model) -> Mapping[str, torch.nn.Parameter]:
    """Freeze the base, but for what `model.trainable` names; returns that by module path."""
    for component in model.components().values():
        component.requires_grad_(False)
    if model.vae is not None:
        model.vae.requires_grad_(False)
    trained = model.parameters_matching(config.model.trainable)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def build_network(
    section: NetworkConfig, datasets: Mapping[str, Any], model: DiffusionModel
) -> Network:
    """A network, attached to the model, resumed and frozen or merged as its section says."""
    network = build(section.module, section.args)
    for name, dataset in datasets.items():
        _check_extras(network, name, dataset)
    network.attach(model)
    if section.resume is not None:
        network.load(Path(section.resume))
    network.requires_grad_(section.train)
    if section.merge:
        merge(network, model)
    return network


def _check_extras(network: Network, name: str, dataset: Any) -> None:
    """Check that a dataset, whose section is `name`, gives what a network needs."""
    provided = set(getattr(dataset, "provides", ()))
    for key in getattr(network, "requires", ()):
        if key not in provided:
            raise ValueError(
                f"needs {key!r} in every batch, but the {name} provides "
                f"{', '.join(sorted(provided)) or 'captions only'}; add `{key}: npz`, or "
                f"`{key}: image`, to {name}.args.extras"
            )
    if hasattr(network, "check_extras"):
        network.check_extras(side_inputs(dataset[0], network.requires))
    if hasattr(network, "check_dataset"):
        network.check_dataset(dataset)


def merge(network: Network, model: Model) -> None:
    """Merge a network into the base for good.

    Raises:
        ValueError: it is of a kind that can't be merged.
    """
    if not hasattr(network, "merge"):
        raise ValueError(f"merge: a {type(network).__name__} can't be merged; take merge out")
    network.merge()
    model.mark_changed(network.parameter_groups())


def parameter_groups(
    config: Config,
    model: Model,
    trained_base: Mapping[str, torch.nn.Parameter],
    networks: Mapping[str, Network],
) -> list[ParameterGroup]:
    """What is trained, with its learning rates."""
    shared, where = config.train.learning_rate, "train.learning_rate"
    components = list(model.components())
    of_base = {path: [parameter] for path, parameter in trained_base.items()}
    groups = make_groups(of_base, shared, components=components, where=where)
    sharing = set(of_base)
    for name, network in networks.items():
        section = config.networks[name]
        if not section.train:
            continue
        own_paths, own = trained_of(network.parameter_groups()), section.learning_rate
        own_where = where if own is None else f"networks.{name}.learning_rate"
        if own is None:
            sharing |= set(own_paths)
        else:
            check_rates(own, own_paths, where=own_where)
        groups += make_groups(
            own_paths,
            shared if own is None else own,
            components=components,
            where=own_where,
            owner=name,
            factors=getattr(network, "rate_factors", {}),
            undecayed=getattr(network, "undecayed", ()),
        )
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
    given = {k: v for k, v in saver_arguments(config).items() if accepts(module, k)}
    return build(module, config.save.args, **given)


def build_sampler(config: Config) -> Any:
    """The sampler, or one that draws nothing."""
    if config.sample is None:
        return NoSamples()
    module = config.sample.module
    given = {k: v for k, v in sampler_arguments(config).items() if accepts(module, k)}
    return build(module, config.sample.args, **given)


def build_average(section: EmaConfig | None, groups: list[ParameterGroup]) -> MovingAverage | None:
    """The moving average of all that is trained, if there is to be one."""
    if section is None:
        return None
    parameters = [parameter for group in groups for parameter in group.parameters]
    return MovingAverage(
        parameters,
        decay=section.decay,
        replaces=section.save == "instead",
        is_sampled=section.sample,
    )


class NoSaves:
    """The saver of a process that is not the first of several."""

    def save_if_due(self, run: Run, *, last: bool) -> None:
        """Write nothing."""


class NoSamples:
    """The sampler of a run without validation images."""

    def sample_if_due(self, run: Run, *, last: bool) -> None:
        """Draw nothing."""


def saver_arguments(config: Config) -> dict[str, Any]:
    return _arguments(config.save, without=OF_THE_RUN)


def sampler_arguments(config: Config) -> dict[str, Any]:
    return _arguments(config.sample)


def _arguments(section: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A section's own values, which are arguments of its component."""
    return {k: v for k, v in vars(section).items() if k not in ("module", "args", *without)}
