"""Measure what a step with each kind of adapter costs beside one with a plain LoRA.

    python bench/adapters.py --write           # into docs/benchmarks.md
    python bench/adapters.py --kinds LoHa DoRA --rounds 3

All are of rank 16 on the same layers of SD1's reduced UNet. Each is a process of its own that
stands still while another works; rounds alternate. Seconds are of the processor, on a GPU of the
clock.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.arms import Arm, measure
from bench.report import conditions, ratio, table, write_section
from bench.training_material import make_config, write_material
from bench.training_models import ARCHITECTURES

TITLE = "What each adapter costs"
HEADER = ("adapter", "s a step", "beside LoRA's", "peak MiB", "beside LoRA's")
BASE = "LoRA"
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    BASE: ("lora.LoRA", {}),
    "LoCon": ("lora.LoRA", {"conv_rank": 16}),
    "LoHa": ("loha.LoHa", {}),
    "LoKr": ("lokr.LoKr", {}),
    "DoRA": ("lora.LoRA", {"dora": "output"}),
    "DoRA, input": ("lora.LoRA", {"dora": "input"}),
}
"""Module and arguments of each."""

NOTES = (
    "Rank 16 on all Linear layers and projections of the transformers in SD1's reduced UNet "
    "(`bench/training_models.py`), LoCon on the convolution blocks too; batches of 2 on latents of "
    "32x32, fp32."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    others = [kind for kind in KINDS if kind != BASE]
    parser.add_argument("--kinds", nargs="+", default=others, choices=others)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured_rows(
            Path(folder),
            [BASE, *options.kinds],
            rounds=options.rounds,
            steps=options.steps,
            threads=options.threads,
        )
    lines = table(HEADER, rows)
    if options.write:
        write_section(TITLE, [conditions("bench/adapters.py", given), "", *lines, "", NOTES])
    print("\n".join(lines))
    return 0


def measured_rows(
    folder: Path, kinds: Sequence[str], *, rounds: int, steps: int, threads: int
) -> list[list[str]]:
    """Train with each of `kinds`, the first being what others are compared with."""
    import torch

    model, data = write_material(folder, ARCHITECTURES["reduced"])
    arms = {}
    for kind in kinds:
        module, args = KINDS[kind]
        config = make_config(model, data, kind=module, precision="no", batch_size=2, args=args)
        arms[kind] = Arm(
            {
                "arm": "ours",
                "folder": str(folder),
                "kind": kind,
                "config": config,
                "threads": threads,
                "counts_operations": False,
                "is_on_gpu": torch.cuda.is_available(),
            }
        )
    found = measure(arms, rounds=rounds, steps=steps)
    base = kinds[0]
    return [
        [
            kind,
            f"{found.middle(kind):.3f}",
            ratio(found.seconds(kind), found.seconds(base)),
            f"{found.memory(kind):.0f}",
            f"{found.memory(kind) / found.memory(base):.2f}",
        ]
        for kind in kinds
    ]


if __name__ == "__main__":
    sys.exit(main())
