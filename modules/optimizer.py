"""What is trained, at which learning rate, and how the rate moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from modules.models.base import matches

if TYPE_CHECKING:
    from modules.protocols import Network

Rate = float | Mapping[str, float]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate; the name appears in logs."""

    name: str
    parameters: list[Parameter]
    learning_rate: float

    @property
    def count(self) -> int:
        """Numbers in all tensors."""
        return sum(parameter.numel() for parameter in self.parameters)


def base_groups(
    parameters: Mapping[str, Parameter], components: Iterable[str], rate: Rate
) -> list[ParameterGroup]:
    """Groups of the base model's trained parameters, one for each component."""
    by_component: dict[str, list[Parameter]] = {}
    for path, parameter in parameters.items():
        component = next(name for name in components if matches(path, name))
        by_component.setdefault(component, []).append(parameter)
    return _groups(by_component, rate, prefix="", where="train.learning_rate")


def network_groups(name: str, network: Network, rate: Rate, *, where: str) -> list[ParameterGroup]:
    """Groups of one network's parameters, one for each component it works on."""
    return _groups(network.parameter_groups(), rate, prefix=f"{name}.", where=where)


def _groups(
    by_component: Mapping[str, Iterable[Parameter]], rate: Rate, *, prefix: str, where: str
) -> list[ParameterGroup]:
    if isinstance(rate, Mapping):
        for key in rate:
            if not any(matches(component, key) for component in by_component):
                raise ValueError(
                    f"{where}.{key}: nothing of {key!r} is trained; trained: "
                    f"{', '.join(by_component) or 'nothing'}"
                )
    return [
        ParameterGroup(prefix + component, list(parameters), _rate_of(component, rate, where))
        for component, parameters in by_component.items()
    ]


def _rate_of(component: str, rate: Rate, where: str) -> float:
    if not isinstance(rate, Mapping):
        return rate
    fitting = [key for key in rate if matches(component, key)]
    if not fitting:
        raise ValueError(f"{where}: has no rate for {component!r}; it names {', '.join(rate)}")
    return rate[max(fitting, key=len)]


def as_optimizer_groups(groups: Iterable[ParameterGroup]) -> list[dict[str, Any]]:
    """The groups as torch optimizers take them."""
    return [
        {"params": group.parameters, "lr": group.learning_rate, "name": group.name}
        for group in groups
    ]


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    name: str,
    warmup_steps: int,
    total_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule of diffusers by its name; one step of it is one optimizer step."""
    from diffusers.optimization import get_scheduler

    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        num_cycles=num_cycles,
        power=power,
    )
