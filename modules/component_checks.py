"""What is wrong with the components that a config names, before data and weights are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules.compilation import compilation_faults
from modules.component import argument_faults, build, resolve
from modules.contracts import lacking_methods
from modules.errors import ConfigError
from modules.fused_backward import fused_backward_faults
from modules.graphed_denoiser import graph_faults
from modules.hardware import precision_fault
from modules.hints import nearest
from modules.models.weight_storage import storage_faults
from modules.optimizer_class import optimizer_faults, own_rate_faults
from modules.parts import build_sampler, build_saver, sampler_arguments, saver_arguments
from modules.run_kinds import kind_of
from modules.sections import Config, DatasetConfig, PriorConfig, ValidationConfig


def check_components(config: Config) -> None:
    """Check every component's arguments against its signature, and what this machine can do.

    Raises:
        ConfigError: lists all faults.
    """
    faults: list[str] = []
    for number, step in enumerate(config.prepare):
        faults += argument_faults(f"prepare.{number}", step.module, step.args)
    faults += _dataset_faults("dataset", config.dataset)
    if config.prior is not None:
        faults += _dataset_faults("prior", config.prior)
    if config.validation is not None and config.validation.split is None:
        faults += _dataset_faults("validation", config.validation)
    for name, network in config.networks.items():
        faults += argument_faults(f"networks.{name}", network.module, network.args)
    objective = config.objective
    if objective.module is not None:
        faults += argument_faults("objective", objective.module, objective.args, {"scheduler"})
    optimizer = config.optimizer
    faults += optimizer_faults(optimizer.module, optimizer.args)
    faults += own_rate_faults(optimizer.module, optimizer.args, config.lr_scheduler)
    given = saver_arguments(config)
    faults += argument_faults("save", config.save.module, config.save.args, given)
    if config.sample is not None:
        given = sampler_arguments(config)
        faults += argument_faults("sample", config.sample.module, config.sample.args, given)
    faults += lacking_methods(config)
    faults += _best_faults(config)
    faults += kind_of(config).find_faults(config)
    precision = precision_fault(config.train.mixed_precision)
    if precision:
        faults.append(precision)
    faults += storage_faults(config.model.quantize)
    faults += _logger_faults(config)
    if not faults:  # what only the classes themselves can judge: ranks, prompts, intervals
        for name, network in config.networks.items():
            faults += _trial(f"networks.{name}", partial(build, network.module, network.args))
        faults += _trial("save", partial(build_saver, config))
        faults += _trial("sample", partial(build_sampler, config))
    if not faults:
        faults += fused_backward_faults(config) + compilation_faults(config) + graph_faults(config)
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"{config.save.name}: the config asks for what can't be done:{listed}")


def _dataset_faults(
    where: str, section: DatasetConfig | PriorConfig | ValidationConfig
) -> list[str]:
    """Faults of a dataset's arguments, also of those that only its own class understands."""
    faults = argument_faults(where, section.module, section.args, supplied={"seed"})
    if not faults and hasattr(resolve(section.module), "find_faults"):
        faults = resolve(section.module).find_faults(where, section.args)
    return faults


def _best_faults(config: Config) -> list[str]:
    if config.validation is None or not config.validation.keep_best:
        return []
    module = config.save.module
    try:
        saves = hasattr(resolve(module), "save")
    except ValueError:  # said already, with the arguments
        return []
    fault = f"validation.keep_best: {module} has no save(run, suffix=...), which writes the best; "
    fault += "write one, or keep_best: false"
    return [] if saves else [fault]


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
