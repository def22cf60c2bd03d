"""Measure the share of a training step that waits for data, by the trainer's own clock.

    python bench/data_wait.py --write          # into docs/benchmarks.md

A LoRA of SD1's reduced UNet is trained on cached latents and text, once from a file for each and
once from packed ones. Seconds are of the clock: what is asked is how long the step stands still.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.report import conditions, table, write_section
from bench.training_material import make_config, write_material
from bench.training_models import ARCHITECTURES

TITLE = "Waiting for data"
HEADER = ("latents", "batch", "s a step", "of which data, ms", "share")
NOTES = (
    "A LoRA of rank 16 on SD1's reduced UNet, latents of 32x32, cached text, read in the training "
    "process (`dataset.num_workers: 0`). `seconds/data` of metrics.jsonl, after the first ten "
    "steps, which also open files."
)
_FIRST = 10  # steps that are left out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    import torch

    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, data = write_material(Path(folder), ARCHITECTURES["reduced"], images=64)
        for name in ("a file each", "packed"):
            if name == "packed":
                from preprocess.pack import pack

                pack(directory=data, remove=True)
            for size in options.batch_sizes:
                rows.append([name, *waiting(model, data, batch_size=size, steps=options.steps)])
    lines = table(HEADER, rows)
    if options.write:
        write_section(TITLE, [conditions("bench/data_wait.py", given), "", *lines, "", NOTES])
    print("\n".join(lines))
    return 0


def waiting(model: Path, data: Path, *, batch_size: int, steps: int) -> list[str]:
    """Train; return the batch size, the seconds of a step, and how long it waited for data."""
    import yaml

    from modules.config import load
    from modules.trainer import Trainer

    config = make_config(model, data, kind="lora.LoRA", precision="no", batch_size=batch_size)
    config["train"] |= {"max_train_steps": _FIRST + steps, "log_every": _FIRST}
    config["save"]["name"] = f"run-{batch_size}"
    path = data.parent / "data_wait.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    trainer.train()
    lines = (trainer.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [each for each in map(json.loads, lines) if each["step"] > _FIRST]
    data_seconds, whole = (
        sum(each[key] for each in records) / len(records)
        for key in ("seconds/data", "seconds_per_step")
    )
    share = f"**{data_seconds / whole:.2%}**"
    return [str(batch_size), f"{whole:.3f}", f"{1000 * data_seconds:.2f}", share]


if __name__ == "__main__":
    sys.exit(main())
