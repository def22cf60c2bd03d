"""Measure training steps and memory against a plain PEFT + diffusers loop, in one run.

    python bench/training.py --write           # all rows of the page, docs/benchmarks.md
    python bench/training.py --kinds lora.LoRA --precisions no --rounds 3
    python bench/training.py --architectures sd1 --precisions bf16 --batch-sizes 1 64 --peak 790

Each side is a process of its own that stands still while the other works; rounds alternate. Seconds
are of the processor, so that other work on the machine counts as little as it can; on a GPU they
are of the clock. No side rehearses a step before it trains.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.arms import Arm, Rounds, measure
from bench.report import conditions, ratio, table, write_section
from bench.training_material import FUSED, make_config, write_material
from bench.training_models import ARCHITECTURES

TITLE = "Training beside PEFT and diffusers"
HEADER = (
    *("work", "batch", "s a step, ours", "theirs", "ours / theirs", "peak MiB, ours", "theirs"),
    *("ours / theirs", "loop / bare step", "images a second"),
)
NOTES = (
    "The peer is a plain loop with PEFT's LoRA, or the whole UNet, on the same cached latents and "
    "text, with the same AdamW and gradient clipping (`bench/training_arms.py`); beside a fused "
    "backward pass neither side clips. The bare step is "
    "forward, backward and optimizer of our own model and adapter without our loop. `reduced` is "
    "SD1's UNet with a fifth of its channels, on latents of 32x32; memory is that of the whole "
    "process, or on a GPU what torch allocated there."
)
SIDES = ("ours", "peft", "bare")
WORDS = {"no": "fp32", "bf16": "bf16"}


def describe(label: str, batch_size: int, found: Rounds, *, peak: float | None) -> list[str]:
    """A row of the table; `peak` in TFLOP/s adds the share of it that is used (MFU)."""
    ours, peft, bare = (found.seconds(side) for side in SIDES)
    memory = {side: found.memory(side) for side in SIDES}
    rate = batch_size / found.middle("ours", "wall")
    cells = [
        label,
        str(batch_size),
        f"{found.middle('ours'):.3f}",
        f"{found.middle('peft'):.3f}",
        ratio(ours, peft),
        f"{memory['ours']:.0f}",
        f"{memory['peft']:.0f}",
        f"**{memory['ours'] / memory['peft']:.2f}**",
        ratio(ours, bare),
        f"{rate:.1f}",
    ]
    if peak is not None:
        used = found.arms["ours"].operations * rate / batch_size / 1e12
        cells[-1] += f" (MFU {used / peak:.0%})"
    return cells


def rows(options: argparse.Namespace) -> list[list[str]]:
    """Measure each row that is asked for."""
    import torch

    found = []
    for name in options.architectures:
        architecture = ARCHITECTURES[name]
        if options.latent_size is not None:
            architecture = replace(architecture, latent_size=options.latent_size)
        with tempfile.TemporaryDirectory() as folder:
            model, data = write_material(Path(folder), architecture, images=options.images)
            common = {
                "folder": folder,
                "layers": adapted_layers(model),
                "scaling_factor": scaling_factor(model),
                "pixels": architecture.latent_size * architecture.pixels,
                "threads": options.threads,
                "counts_operations": options.peak is not None,
                "is_on_gpu": torch.cuda.is_available(),
            }
            for kind, precision, size in (
                (kind, precision, size)
                for kind in options.kinds
                for precision in options.precisions
                for size in options.batch_sizes
            ):
                config = make_config(model, data, kind=kind, precision=precision, batch_size=size)
                settings = {**common, "kind": kind, "config": config}
                arms = {side: Arm({**settings, "arm": side}) for side in SIDES}
                measured = measure(arms, rounds=options.rounds, steps=options.steps)
                label = f"{name}, {_name(kind)}, {WORDS[precision]}"
                found.append(describe(label, size, measured, peak=options.peak))
                print(" | ".join(found[-1]), flush=True)
    return found


def _name(kind: str) -> str:
    return "full, fused backward" if kind == FUSED else kind.rpartition(".")[2]


def adapted_layers(model: Path) -> list[str]:
    """Paths within the UNet of the layers that a LoRA is beside."""
    from modules import models

    layers = models.load(str(model), weights=False).adapter_layers(["unet"], conv=False)
    return [path.removeprefix("unet.") for path in layers]


def scaling_factor(model: Path) -> float:
    """What latents are multiplied by."""
    config = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
    return float(config["scaling_factor"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--architectures", nargs="+", default=["reduced"], choices=list(ARCHITECTURES)
    )
    parser.add_argument("--kinds", nargs="+", default=["lora.LoRA", "full", FUSED])
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], choices=list(WORDS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--images", type=int, default=64, help="of the dataset")
    parser.add_argument("--latent-size", type=int, help="default: the architecture's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="of the GPU, for its MFU")
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    lines = table(HEADER, rows(options))
    if options.write:
        write_section(TITLE, [conditions("bench/training.py", given), "", *lines, "", NOTES])
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
