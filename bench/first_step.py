"""Measure what a run costs from its command to its first step, beside PEFT and diffusers.

    python bench/first_step.py --write         # into docs/benchmarks.md
    python bench/first_step.py --architectures tiny --rounds 3

Sides are whole processes, one at a time, and rounds alternate: `python main.py` with one step,
the peer's plain loop with one step (`bench/training_arms.py`), and the imports that no side can do
without. All read the same files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.arms import ARMS
from bench.processes import Taken, run_whole
from bench.report import conditions, ratio, table, write_section
from bench.training import adapted_layers, scaling_factor
from bench.training_material import make_config, write_material
from bench.training_models import ARCHITECTURES, Architecture

TITLE = "From command to first step"
HEADER = (
    *("model", "imports, CPU s", "ours, CPU s", "the peer's", "ours / the peer's"),
    *("above the imports: ours", "the peer's", "ours / the peer's"),
    *("s of the clock, ours", "the peer's", "peak MiB, ours", "the peer's", "ours / the peer's"),
)
IMPORTS = "import torch; from diffusers import DDPMScheduler, UNet2DConditionModel"
NOTES = (
    f"Whole processes: `python main.py` with `train.max_train_steps: 1`, which also checks its "
    "config, data and model, and saves the adapter; the peer's loop with PEFT's LoRA, which ends "
    f"after the step and saves nothing; and `{IMPORTS}`, which both need (the peer imports peft "
    "besides). A LoRA of rank 16 on the same layers, batches of 2, cached latents and text, fp32, "
    "one thread, `train.rehearse: false`. `tiny` is the quickstart's model, `reduced` SD1's UNet "
    "with a fifth of its channels. What is above the imports is each round's difference; ours is "
    "less than what they cost a plain process, since it keeps Python's garbage collector from them "
    "and doesn't import packages for quantized models."
)
MAIN = Path(__file__).resolve().parent.parent / "main.py"
_BATCH_SIZE = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["tiny", "reduced"]
    parser.add_argument("--architectures", nargs="+", default=names, choices=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    rows = []
    for name in options.architectures:
        with tempfile.TemporaryDirectory() as folder:
            sides = commands(Path(folder), ARCHITECTURES[name])
            rows.append([name, *describe(alternate(sides, rounds=options.rounds))])
        print(" | ".join(rows[-1]), flush=True)
    lines = table(HEADER, rows)
    if options.write:
        write_section(TITLE, [conditions("bench/first_step.py", given), "", *lines, "", NOTES])
    print("\n".join(lines))
    return 0


def commands(folder: Path, architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Write what is trained; return each side's arguments of `run_whole`."""
    import yaml

    model, data = write_material(folder, architecture)
    config = make_config(model, data, kind="lora.LoRA", precision="no", batch_size=_BATCH_SIZE)
    config["train"]["max_train_steps"] = 1
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings = {
        "arm": "peft",
        "kind": "lora.LoRA",
        "config": config,
        "layers": adapted_layers(model),
        "scaling_factor": scaling_factor(model),
        "pixels": architecture.latent_size * architecture.pixels,
        "threads": 1,
        "counts_operations": False,
    }
    peer = folder / "peer.json"
    peer.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    python = sys.executable
    return {
        "imports": {"command": [python, "-c", IMPORTS]},
        "ours": {"command": [python, str(MAIN), str(folder / "run.yaml")]},
        "peft": {"command": [python, str(ARMS)], "stdin": peer},
    }


def alternate(sides: Mapping[str, Mapping[str, Any]], *, rounds: int) -> dict[str, list[Taken]]:
    """Run all sides in rounds, every other one backwards; the first round only warms caches."""
    found: dict[str, list[Taken]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            taken = run_whole(**sides[name], variables={"OMP_NUM_THREADS": "1"})
            if number:
                found[name].append(taken)
    return found


def describe(found: Mapping[str, Sequence[Taken]]) -> list[str]:
    """The cells of a row, but for its label."""
    cpu = {name: [each.cpu for each in taken] for name, taken in found.items()}
    above = {
        name: [a - b for a, b in zip(cpu[name], cpu["imports"], strict=True)]
        for name in ("ours", "peft")
    }
    wall = {name: statistics.median(each.wall for each in taken) for name, taken in found.items()}
    memory = {name: [each.mib for each in taken] for name, taken in found.items()}
    middle = statistics.median
    return [
        *(f"{middle(cpu[name]):.2f}" for name in ("imports", "ours", "peft")),
        ratio(cpu["ours"], cpu["peft"]),
        *(f"{middle(above[name]):.2f}" for name in ("ours", "peft")),
        _share(*(middle(above[name]) for name in ("ours", "peft"))),
        *(f"{wall[name]:.2f}" for name in ("ours", "peft")),
        *(f"{middle(memory[name]):.0f}" for name in ("ours", "peft")),
        ratio(memory["ours"], memory["peft"]),
    ]


def _share(ours: float, theirs: float) -> str:
    """The ratio of seconds above the imports; there is none where ours are fewer than those."""
    return "**below 0**" if ours <= 0 else f"**{ours / theirs:.2f}**"


if __name__ == "__main__":
    sys.exit(main())
