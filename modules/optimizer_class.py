"""The optimizer's class, of any package: whether it fits this trainer, and how it is made."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Parameter

from modules.component import argument_faults, build, resolve
from modules.optimizer import ParameterGroup, as_optimizer_groups
from modules.sections import LrSchedulerConfig

logger = logging.getLogger(__name__)

_ANOTHER = "use another, such as torch.optim.AdamW"
_FORMS = {"fused", "foreach", "differentiable", "capturable"}
_WRAPPED = ("optimizer", "base_optimizer")


def optimizer_faults(path: str, args: Mapping[str, Any]) -> list[str]:
    """What is wrong with training with the optimizer at `path`, one line each."""
    parameters = _parameters(path)
    wanted = [name for name, p in parameters.items() if p.default is p.empty]
    if any(name in _WRAPPED for name in wanted):
        return [
            f"optimizer.module: {path} wraps another optimizer, which is not done here; {_ANOTHER}"
        ]
    if "model" in wanted:
        return [f"optimizer.module: {path} wants a whole model in place of parameters; {_ANOTHER}"]
    if _wants_closure(path):
        return [
            f"optimizer.module: {path} evaluates the loss several times in a step, which is not "
            f"done here; {_ANOTHER}"
        ]
    first = next(iter(parameters), "params")  # whatever it is called, it gets the parameters
    return argument_faults("optimizer", path, args, {first, "lr"})


def has_own_rate(path: str, args: Mapping[str, Any]) -> bool:
    """Whether an optimizer passes over the learning rate that it is given (Adafactor's way)."""
    asked = _parameters(path).get("relative_step")
    return asked is not None and args.get("relative_step", asked.default) is True


def own_rate_faults(path: str, args: Mapping[str, Any], schedule: LrSchedulerConfig) -> list[str]:
    """What is wrong with a learning-rate schedule beside an optimizer that has its own."""
    warms_up = schedule.warmup_steps or schedule.warmup_ratio
    if (schedule.name == "constant" and not warms_up) or not has_own_rate(path, args):
        return []
    return [
        f"optimizer.args.relative_step: {path} then follows a learning rate of its own, and "
        f"lr_scheduler ({schedule.name}{' with warm-up' if warms_up else ''}) would have no "
        "effect; write `relative_step: false`, or leave lr_scheduler out"
    ]


def warn_of_factor(path: str, groups: Sequence[ParameterGroup]) -> None:
    """Say when the rate of an optimizer that finds its own is not 1, by which it multiplies it."""
    highest = max(group.learning_rate for group in groups)
    if highest != 1 and "d0" in _parameters(path):  # D-Adaptation, Prodigy, what is made of them
        logger.warning(
            "optimizer: %s finds its learning rate by itself and multiplies it with ours, %g; "
            "train.learning_rate: 1 is usual",
            path,
            highest,
        )


def make_optimizer(path: str, args: Mapping[str, Any], groups: Sequence[ParameterGroup]) -> Any:
    """The optimizer over all parameter groups, each with its own learning rate.

    One of torch's that has a fused form gets it, unless another is asked for: it is the fastest,
    and leaves out a step that is not finite without waiting for the device.
    """
    parameters = _parameters(path)
    rate = parameters.get("lr")
    wants_one = rate is not None and rate.default is rate.empty
    supplied: dict[str, Any] = {"lr": groups[0].learning_rate} if wants_one else {}
    if path.startswith("torch.optim.") and "fused" in parameters and not _FORMS & args.keys():
        supplied["fused"] = all(_has_fused(p) for group in groups for p in group.parameters)
    return build(path, args, as_optimizer_groups(groups), **supplied)


def _has_fused(parameter: Parameter) -> bool:
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda", "mps", "xpu")


def _parameters(path: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(resolve(path)).parameters
    except (TypeError, ValueError):  # not there, which is said elsewhere, or without a signature
        return {}


def _wants_closure(path: str) -> bool:
    try:
        step = resolve(path).step
        closure = inspect.signature(step).parameters.get("closure")
    except (AttributeError, TypeError, ValueError):
        return False
    return closure is not None and closure.default is closure.empty
