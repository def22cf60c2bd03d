"""Where a loss or gradient that is not finite comes from, and what shows it again."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.checkpoint import TrainState
from modules.errors import RunError
from modules.files import replacing_directory, write_atomically
from modules.loading import Group, Part
from modules.randomness import seed_step

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)

STATE, BATCHES, REPORT = "state", "batches.pt", "report.json"
"""What a bundle `nan_step_<n>` holds."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was seen when a step was made again with an eye on every module."""

    step: int
    seed: int
    rank: int  # of several processes
    images: Sequence[str]
    captions: Sequence[str]
    timesteps: Sequence[int]
    losses: Sequence[float]  # of each batch
    module: str | None  # the first whose output is not finite
    gradient: str | None  # else the first parameter whose gradient is not

    def __str__(self) -> str:
        if self.module:
            found = f"the output of {self.module} is the first that is not finite"
        elif self.gradient:
            found = f"the gradient of {self.gradient} is the first that is not finite"
        else:
            found = "made again by itself, it is finite"
        return (
            f"step {self.step} (seed {self.seed}): {found}; images {', '.join(self.images)}; "
            f"timesteps {', '.join(map(str, self.timesteps)) or 'none'}"
        )


def check_steps(run: Trainer) -> None:
    """Say how many steps changed nothing since the last call; called where a line is logged.

    Raises:
        RunError: too many in a row; a bundle beside the run's files shows the last of them.
    """
    skipped = run.guard.take_skipped()
    if skipped:
        scaled = run.accelerator.scaler is not None
        logger.log(
            logging.INFO if scaled else logging.WARNING,
            "step %d: %d step(s) since the last line had a loss or gradient that is not finite, "
            "and changed nothing%s",
            run.step,
            skipped,
            "; under fp16 some are usual at the beginning" if scaled else "",
        )
    if run.guard.is_over():
        rank = run.accelerator.process_index
        report = examine(run, run.last_group, number=run.step, rank=rank)
        path = write_bundle(run, report)
        raise RunError(
            f"step {run.step}: loss or gradient were not finite in so many steps in a row that "
            f"training stops; no weight was changed by them.\n  {report}\n  {path} holds the step; "
            f"python tools/replay.py {path} makes it again.\n  Lower the learning rate, use bf16 "
            "instead of fp16, or look at these images"
        )


def examine(run: Trainer, group: Group, *, number: int, rank: int = 0) -> Report:
    """Make a step's forward and backward passes again, with an eye on every module."""
    seed_step(run.seed, step=number, rank=rank)
    drawn: list[Tensor] = []
    losses, gradient = [], None
    with _watched(run) as seen, _recorded(run, drawn):
        for part in group:
            with run.autocast():
                loss = run.loss(part.batch.to(run.accelerator.device)) * part.weight
            losses.append(loss.detach())
            scaler = run.accelerator.scaler
            (loss if scaler is None else scaler.scale(loss)).backward()
    if not seen:
        gradient = _first_gradient(run)
    run.optimizer.zero_grad(set_to_none=True)
    return Report(
        step=number,
        seed=run.seed,
        rank=rank,
        images=[name for part in group for name in part.batch.names],
        captions=[caption for part in group for caption in part.batch.captions],
        timesteps=[int(t) for each in drawn for t in each.flatten().tolist()],
        losses=[float(loss) for loss in losses],
        module=seen[0] if seen else None,
        gradient=gradient,
    )


def write_bundle(run: Trainer, report: Report) -> Path:
    """Write weights, batches and report of a step as `nan_step_<n>` into the run's folder."""
    ending = f"-rank{report.rank}" if report.rank else ""
    path = run.directory / f"nan_step_{report.step:08d}{ending}"
    with replacing_directory(path) as folder:
        TrainState.of(run).save(folder / STATE)
        content = [
            {"batch": vars(p.batch.to(torch.device("cpu"))), "images": p.images, "weight": p.weight}
            for p in run.last_group
        ]
        torch.save(content, folder / BATCHES)
        text = json.dumps(asdict(report), ensure_ascii=False, indent=1)
        write_atomically(folder / REPORT, text + "\n")
    return path


def read_batches(path: Path) -> Group:
    """The batches of a bundle."""
    content = torch.load(path / BATCHES, map_location="cpu", weights_only=True)
    return [Part(Batch(**part["batch"]), part["images"], part["weight"]) for part in content]


@contextlib.contextmanager
def _watched(run: Trainer) -> Iterator[list[str]]:
    """Yield a list that gets the paths of modules whose output is not finite, the first first."""
    parts: dict[str, Any] = {**run.model.components(), **run.networks}
    if run.model.vae is not None:
        parts["vae"] = run.model.vae
    seen: list[str] = []
    hooks = [
        module.register_forward_hook(_make_hook(f"{name}.{path}" if path else name, seen))
        for name, part in parts.items()
        for path, module in part.named_modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _make_hook(path: str, seen: list[str]):
    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in _floats(output)):
            seen.append(path)

    return look


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _floats(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _floats(each)


@contextlib.contextmanager
def _recorded(run: Trainer, drawn: list[Tensor]) -> Iterator[None]:
    """Note the timesteps that the objective draws."""
    objective: Any = run.objective
    draw = getattr(objective, "sample_timesteps", None)
    if draw is None:
        yield
        return

    def note(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    objective.sample_timesteps = note
    try:
        yield
    finally:
        del objective.sample_timesteps


def _first_gradient(run: Trainer) -> str | None:
    named: list[tuple[str, nn.Parameter]] = list(run.trained_base.items())
    for name, network in run.networks.items():
        module: Any = network
        named += [(f"{name}.{key}", parameter) for key, parameter in module.named_parameters()]
    for name, parameter in named:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return None
