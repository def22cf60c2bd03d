"""The memory estimate as a person reads it: the run's own peak, and a table around it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from modules.checkpointing import as_key
from modules.memory import (
    FIXED_ALLOWANCE,
    GIB,
    SHARE_ALLOWANCE,
    Estimate,
    RunMemory,
    card_memory,
)
from modules.memory_advice import advise
from modules.run_parts import RunParts
from modules.sections import Config

PRECISIONS = ("no", "bf16", "fp16")
_WIDTH = 9


def memory_lines(
    config: Config, parts: RunParts, reload: Callable[[Config], RunParts]
) -> list[str]:
    """What a run takes of a card's memory, and what would lower it, line by line.

    The parts are used up. `reload` loads those of another config, without weights. What can't be
    estimated is said in one line: modules of a person's own may need values.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what was said of the run's own parts, or is of no account
    try:
        return _lines(config, parts, reload)
    except Exception as error:  # of whatever package
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [f"can't be estimated ({reason})"]
    finally:
        logging.disable(before)


def _lines(config: Config, parts: RunParts, reload: Callable[[Config], RunParts]) -> list[str]:
    train = config.train
    memory = RunMemory(config, parts)
    own_blocks = as_key(train.gradient_checkpointing)
    rows = {
        (precision, checkpointing): memory.estimate(precision, checkpointing=checkpointing)
        for checkpointing in dict.fromkeys((False, own_blocks, True))
        for precision in PRECISIONS
    }
    chosen = train.mixed_precision, own_blocks
    own, card = rows[chosen], card_memory()
    lines = summary_lines(own, train.batch_size, card)
    sizes = batch_sizes(train.batch_size, train.minibatch_repeat)
    lines.append(f"{'GiB by batch size':<21}" + "".join(f"{size:>{_WIDTH}}" for size in sizes))
    for key, estimate in rows.items():
        name = key[0] + _CHECKPOINTS.get(key[1], ", these blocks")
        cells = [_cell(estimate, n, key == chosen and n == train.batch_size) for n in sizes]
        lines.append(f"{name:<21}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells))
    return lines + advise(memory, rows, reload)


def summary_lines(estimate: Estimate, batch_size: int, card: int | None) -> list[str]:
    """The run's own peak, and of what it is made."""
    phases = estimate.phases(batch_size)
    highest = max(phases, key=lambda name: phases[name])
    peak = estimate.peak(batch_size)
    fits = ""
    if card is not None:
        verdict = "fits" if peak <= card else "does NOT fit"
        fits = f", which {verdict} in this card's {card / GIB:.1f} GiB"
    step = phases["training"] - estimate.kept
    parts = [
        ("weights", estimate.weights),
        ("optimizer", estimate.state),
        ("moving average", estimate.average),
        ("forward and backward", step),
        ("sampling", estimate.sampling),
    ]
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size)
    return [
        f"about {peak / GIB:.1f} GiB of a card at most, in {_PHASES[highest]}{fits}",
        f"{listed}; assumed on top: {FIXED_ALLOWANCE / GIB:g} for CUDA, {SHARE_ALLOWANCE:.0%} "
        "for gaps",
    ]


_PHASES = {
    "training": "the forward and backward pass",
    "optimizer": "the optimizer's step",
    "sampling": "sampling",
}

_CHECKPOINTS: dict[bool | tuple[str, ...], str] = {False: "", True: ", checkpointing"}


def batch_sizes(own: int, repeats: int) -> list[int]:
    """Batch sizes of the table: powers of two times the repeats, and the run's own."""
    sizes = {repeats * factor for factor in (1, 2, 4, 8)} | {own, 2 * own}
    return sorted(sizes)


def _cell(estimate: Estimate, batch_size: int, is_own: bool) -> str:
    text = f"{estimate.peak(batch_size) / GIB:.1f}"
    return f"[{text}]" if is_own else f"{text} "
