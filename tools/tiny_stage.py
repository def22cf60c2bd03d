"""Run one stage of a training that may be interrupted at any time."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

logger = logging.getLogger(__name__)


def run_stage(
    name: str,
    checkpoint: Path,
    models: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[int], torch.Tensor],
    *,
    steps: int,
    after_step: Callable[[int], None] = lambda step: None,
    log_every: int = 100,
) -> None:
    """Train from the checkpoint, if there is one, up to `steps`; warm-up, then a cosine to 1 %.

    Saves every `log_every` steps. Schedule and data depend on the step alone, so that a resumed
    run goes on as an uninterrupted one would.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    peak = optimizer.param_groups[0]["lr"]
    state = {"step": 0}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        for key, model in models.items():
            model.load_state_dict(state[key])
    losses: list[float] = []
    start = time.monotonic()
    for step in range(state["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step, steps)
        torch.manual_seed(step)
        loss = compute_loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step(step)
        losses.append(loss.item())
        if (step + 1) % log_every == 0 or step + 1 == steps:
            pace = (time.monotonic() - start) / len(losses)
            recent = float(np.mean(losses[-log_every:]))
            logger.info("%s: step %d/%d, loss %.4f, %.3f s", name, step + 1, steps, recent, pace)
            state = {key: model.state_dict() for key, model in models.items()}
            state |= {"step": step + 1, "optimizer": optimizer.state_dict()}
            write_atomically(state, checkpoint)


def write_atomically(state: dict, path: Path) -> None:
    """Save a checkpoint so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _schedule(step: int, steps: int) -> float:
    warm_up = min(100, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
