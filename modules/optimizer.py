"""What is trained, at which learning rate, and how the rate moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from modules.errors import RunError
from modules.models.patterns import matches

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


def base_parameters(
    parameters: Mapping[str, Parameter], components: Iterable[str]
) -> dict[str, list[Parameter]]:
    """Trained parameters of the base model by component."""
    by_component: dict[str, list[Parameter]] = {}
    for path, parameter in parameters.items():
        component = next(name for name in components if matches(path, name))
        by_component.setdefault(component, []).append(parameter)
    return by_component


def make_groups(
    by_component: Mapping[str, Iterable[Parameter]], rate: Rate, *, owner: str = "", where: str
) -> list[ParameterGroup]:
    """One group for each component; `owner` is the network's name, "" for the base."""
    prefix = f"{owner}." if owner else ""
    return [
        ParameterGroup(prefix + component, list(parameters), _rate_of(component, rate, where))
        for component, parameters in by_component.items()
    ]


def check_rates(rate: Rate, components: Iterable[str], *, where: str) -> None:
    """Check that each name of a rate by component is of something that takes it.

    Raises:
        ValueError: a name is of nothing that is trained with this rate.
    """
    components = sorted(set(components))
    for key in rate if isinstance(rate, Mapping) else ():
        if not any(matches(component, key) for component in components):
            raise ValueError(
                f"{where}.{key}: nothing of {key!r} is trained with it; it is for "
                f"{', '.join(components) or 'nothing'}"
            )


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


def make_step(optimizer: Any, *, number: int) -> None:
    """Make optimizer step `number` of a run.

    Raises:
        RunError: an optimizer of whatever package refuses the first one: it wants other shapes,
            second derivatives, or what else it can't have here.
    """
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if number > 1:
            raise
        name = type(getattr(optimizer, "optimizer", optimizer)).__name__
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"optimizer: {name} can't make a step here: {reason}; use another, such as "
            "torch.optim.AdamW"
        ) from error


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
