"""Measure how costs grow with the batch size, the resolution and the number of images.

    python bench/growth.py --write             # into docs/benchmarks.md
    python bench/growth.py --images 100 10000 --rounds 3

A LoRA of SD1's reduced UNet is trained, each size in a process of its own that stands still while
another works, in rounds that alternate; datasets are opened as `bench/large_data.py` does. Seconds
are of the processor, on a GPU of the clock.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.arms import Arm, Rounds, measure
from bench.large_data import make_dataset, measure_afresh
from bench.report import conditions, ratio, table, write_section
from bench.training import adapted_layers, scaling_factor
from bench.training_material import make_config, write_material
from bench.training_models import ARCHITECTURES

TITLE = "Growth"
SIDES = ("ours", "peft")
STEP_HEADER = (
    *("s a step", "ms {each}", "beside the smallest's", "the peer's beside its smallest's"),
    *("ours / the peer's", "peak MiB", "{memory} more {each}", "the peer's"),
)
IMAGES_HEADER = (
    *("images", "buckets.json, s", "µs an image", "whole dataset, s", "µs an image"),
    *("epoch's order, s", "µs an image", "peak MiB", "bytes more an image"),
)
NOTES = (
    "A LoRA of rank 16 on SD1's reduced UNet, cached latents and text, fp32; batches of 32x32 "
    "latents, and resolutions in batches of one; the peer is that of `bench/training.py`. Memory "
    "is that of the whole process, on a GPU what torch allocated there; what is more is counted "
    "from the row above. Attention compares all positions with each other, so that a position "
    "costs more the more there are, whoever trains. Images are packed, in 20 buckets, with names "
    "of 27 letters; of the whole dataset all shapes are compared and a batch is read."
)


@dataclass(frozen=True)
class Work:
    """Steps of one size."""

    label: str
    model: Path
    data: Path
    batch_size: int
    units: int
    """What seconds and memory are divided by: images of a batch, positions of a latent."""
    latent_size: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts = [100, 1000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--latent-sizes", nargs="*", type=int, default=[16, 24, 32, 48, 64])
    parser.add_argument("--images", nargs="*", type=int, default=counts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in each round")
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    rounds = {"rounds": options.rounds, "steps": options.steps}
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        batches = batch_works(Path(folder, "batches"), options.batch_sizes)
        tables.append(step_table("batch", batches, each="an image", memory="MiB", **rounds))
        sizes = resolution_works(Path(folder), options.latent_sizes)
        tables.append(step_table("pixels", sizes, each="a position", memory="KiB", **rounds))
    tables.append(table(IMAGES_HEADER, images_rows(options.images)))
    lines = [line for each in tables if each[2:] for line in (*each, "")]
    if options.write:
        write_section(TITLE, [conditions("bench/growth.py", given), "", *lines, NOTES])
    print("\n".join(lines))
    return 0


def batch_works(folder: Path, sizes: Sequence[int]) -> list[Work]:
    """Batches of each size on latents of one."""
    base = ARCHITECTURES["reduced"]
    model, data = write_material(folder, base)
    side = base.latent_size
    return [Work(str(n), model, data, batch_size=n, units=n, latent_size=side) for n in sizes]


def resolution_works(folder: Path, sizes: Sequence[int]) -> list[Work]:
    """Batches of one on latents of each side."""
    base, works = ARCHITECTURES["reduced"], []
    for n in sizes:
        model, data = write_material(folder / str(n), replace(base, latent_size=n), images=8)
        label = f"{n * base.pixels}x{n * base.pixels}"
        works.append(Work(label, model, data, batch_size=1, units=n * n, latent_size=n))
    return works


def step_table(
    label: str, works: Sequence[Work], *, each: str, memory: str, rounds: int, steps: int
) -> list[str]:
    """Train on each, and compare what a unit takes with the first one's.

    `each` is what the units are called, and `memory` what theirs is counted in: MiB or KiB.
    """
    header = [label, *(head.format(each=each, memory=memory) for head in STEP_HEADER)]
    scale = {"MiB": 1, "KiB": 2**10}[memory]
    arms = {f"{side} {work.label}": _arm(side, work) for work in works for side in SIDES}
    found = measure(arms, rounds=rounds, steps=steps)
    units = [work.units for work in works]
    more = {
        side: _steps_up([scale * found.memory(f"{side} {w.label}") for w in works], units)
        for side in SIDES
    }
    rows = []
    for place, work in enumerate(works):
        ours, peft = (f"{side} {work.label}" for side in SIDES)
        beside = [
            ratio(_per_unit(found, side, work), _per_unit(found, side, works[0])) for side in SIDES
        ]
        rows.append(
            [
                *(work.label, f"{found.middle(ours):.3f}"),
                f"{1000 * found.middle(ours) / work.units:.3g}",
                *beside,
                ratio(found.seconds(ours), found.seconds(peft)),
                *(f"{found.memory(ours):.0f}", more["ours"][place], more["peft"][place]),
            ]
        )
    return table(header, rows)


def images_rows(counts: Sequence[int]) -> list[list[str]]:
    """Open datasets of so many images, each in a process of its own."""
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make_dataset(Path(folder), count)
            found.append(measure_afresh(Path(folder)))
    more = _steps_up([2**20 * took["peak MiB"] for took in found], counts)
    rows = []
    for count, took, memory in zip(counts, found, more, strict=True):
        cells = [
            text
            for stage in ("buckets.json", "in all", "epoch")
            for text in (f"{took[stage]:.4f}", f"{1e6 * took[stage] / count:.2f}")
        ]
        rows.append([f"{count:,}", *cells, f"{took['peak MiB']:.0f}", memory])
    return rows


def _arm(side: str, work: Work) -> Arm:
    import torch

    config = make_config(
        work.model, work.data, kind="lora.LoRA", precision="no", batch_size=work.batch_size
    )
    config["save"]["name"] = f"run-{work.batch_size}"
    settings: dict[str, Any] = {
        "arm": side,
        "folder": str(work.data.parent),
        "kind": f"batch-{work.batch_size}",
        "config": config,
        "layers": adapted_layers(work.model),
        "scaling_factor": scaling_factor(work.model),
        "pixels": work.latent_size * ARCHITECTURES["reduced"].pixels,
        "threads": 1,
        "counts_operations": False,
        "is_on_gpu": torch.cuda.is_available(),
    }
    return Arm(settings)


def _per_unit(found: Rounds, side: str, work: Work) -> list[float]:
    """Seconds of a step by its units, round by round."""
    return [seconds / work.units for seconds in found.seconds(f"{side} {work.label}")]


def _steps_up(values: Sequence[float], counts: Sequence[int]) -> list[str]:
    """How much each value is above the one before, by how much its count is."""
    more = [
        (values[i] - values[i - 1]) / (counts[i] - counts[i - 1]) for i in range(1, len(values))
    ]
    return [*[""][: len(values)], *(f"{each:.1f}" for each in more)]


if __name__ == "__main__":
    sys.exit(main())
