"""What is trained, at which learning rate, and how the rate moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from modules.errors import RunError
from modules.models.patterns import matches, nearby

if TYPE_CHECKING:
    from accelerate import Accelerator

Rate = float | Mapping[str, float]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate; the name appears in logs."""

    name: str
    parameters: list[Parameter]
    learning_rate: float
    decays: bool = True  # false: no weight decay, whatever the optimizer's is

    @property
    def count(self) -> int:
        """Numbers in all tensors."""
        return sum(parameter.numel() for parameter in self.parameters)


def make_groups(
    by_path: Mapping[str, Iterable[Parameter]],
    rate: Rate,
    *,
    components: Iterable[str],
    where: str,
    owner: str = "",
    factors: Mapping[str, float] | None = None,
    undecayed: Iterable[str] = (),
) -> list[ParameterGroup]:
    """One group for all parameters of a component, or of a finer pattern with a rate of its own.

    Args:
        by_path: parameters by module path, or by anything above it.
        owner: the network's name, "" for the base.
        factors: what the rate is multiplied by, by pattern: `*.lora_up`.
        undecayed: patterns of what weight decay would harm.

    Raises:
        ValueError: there is no rate for a parameter.
    """
    known, tails = list(components), dict(factors or {})
    groups: dict[str, ParameterGroup] = {}
    for path, parameters in by_path.items():
        component = next((name for name in known if matches(path, name)), path)
        name, learning_rate = _rate_of(path, component, rate, where)
        decays = not any(matches(path, pattern) for pattern in undecayed)
        for pattern in {**tails, **dict.fromkeys(undecayed, 1.0)}:
            if matches(path, pattern):
                name += "." + pattern.rpartition(".")[2]
                learning_rate *= tails.get(pattern, 1.0)
        name = f"{owner}.{name}" if owner else name
        group = groups.setdefault(name, ParameterGroup(name, [], learning_rate, decays))
        group.parameters.extend(parameters)
    return list(groups.values())


def trained_of(by_path: Mapping[str, Iterable[Parameter]]) -> dict[str, list[Parameter]]:
    """What requires gradients of these parameters; paths without any are left out."""
    found = {path: [p for p in group if p.requires_grad] for path, group in by_path.items()}
    return {path: group for path, group in found.items() if group}


def check_rates(rate: Rate, paths: Iterable[str], *, where: str) -> None:
    """Check that each name of a rate by module path is of something that takes it.

    Raises:
        ValueError: a name is of nothing that is trained with this rate.
    """
    paths = list(paths)
    for key in rate if isinstance(rate, Mapping) else ():
        if not any(matches(path, key) for path in paths):
            raise ValueError(
                f"{where}.{key}: nothing of {key!r} is trained with it; it is for "
                f"{nearby(key, paths) or 'nothing'}"
            )


def _rate_of(path: str, component: str, rate: Rate, where: str) -> tuple[str, float]:
    """What a parameter's rate is called, and the rate."""
    if not isinstance(rate, Mapping):
        return component, rate
    fitting = [key for key in rate if matches(path, key)]
    if not fitting:
        raise ValueError(
            f"{where}: has no rate for {path!r}; it names {', '.join(rate)}; give one for "
            f"{component} too"
        )
    longest = max(fitting, key=len)
    return component if matches(component, longest) else longest, rate[longest]


def as_optimizer_groups(groups: Iterable[ParameterGroup]) -> list[dict[str, Any]]:
    """The groups as torch optimizers take them."""
    return [
        {
            "params": group.parameters,
            "lr": group.learning_rate,
            "name": group.name,
            **({} if group.decays else {"weight_decay": 0.0}),
        }
        for group in groups
    ]


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """The settings that each parameter group of a fresh optimizer has, plain values only."""
    plain = (int, float, bool, str, tuple, type(None))
    return [
        {
            **{k: v for k, v in group.items() if k != "params" and isinstance(v, plain)},
            "lr": float(group.get("initial_lr", group["lr"])),  # a schedule has moved the other
        }
        for group in optimizer.param_groups
    ]


def clip_gradients(
    accelerator: Accelerator, parameters: Sequence[Parameter], max_norm: float
) -> Tensor:
    """Scale gradients down to a norm of `max_norm`, 0 leaves them; returns the norm before."""
    if max_norm:
        norm = accelerator.clip_grad_norm_(parameters, max_norm)
        assert norm is not None, "FSDP is refused at start"
        return norm
    accelerator.unscale_gradients()
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


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
