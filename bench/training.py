"""Measure steps and memory of training against a plain PEFT + diffusers loop, in one run.

    python bench/training.py                     # LoRA and full, fp32; prints a table
    python bench/training.py --kinds lora.LoRA --precisions no bf16 --rounds 7

Each side is a process of its own that stands still while the other works; rounds alternate. Seconds
are of the processor, so that other work on the machine counts as little as it can; ratios are the
medians of rounds, with the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.training_material import make_config, write_material

ARMS = Path(__file__).with_name("training_arms.py")
HEAD = (
    "| work | s a step, ours | theirs | ours / theirs | peak memory, MiB | theirs | ratio "
    "| to the first step, s | theirs | ratio | our loop over the bare step |"
)


class Arm:
    """A process that makes steps when asked."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ARMS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ARMS.parent.parent,
        )
        self.first_step = self._ask(json.dumps({**settings, "arm": name}))["first_step"]

    def steps(self, count: int) -> dict[str, float]:
        """Make some steps; return their `cpu` and `wall` seconds, and the peak `MiB` by now."""
        return self._ask(str(count))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("{"):
                return json.loads(answer)
        raise RuntimeError(f"{ARMS.name} ended without an answer")


def measure(settings: dict[str, Any], *, rounds: int, steps: int) -> dict[str, Any]:
    """Alternate rounds of all sides; return the values of each round."""
    arms = {name: Arm(name, settings) for name in ("ours", "peft", "bare")}
    for arm in arms.values():
        arm.steps(steps)  # the first ones allocate
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            found[name].append(arms[name].steps(steps))
    for arm in arms.values():
        arm.close()
    return {
        "cpu": {name: [each["cpu"] / steps for each in values] for name, values in found.items()},
        "MiB": {name: values[-1]["MiB"] for name, values in found.items()},
        "first_step": {name: arm.first_step for name, arm in arms.items()},
    }


def describe(label: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    cpu, memory, first = found["cpu"], found["MiB"], found["first_step"]
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    ratios = sorted(a / b for a, b in zip(cpu["ours"], cpu["peft"], strict=True))
    loop = statistics.median(a / b for a, b in zip(cpu["ours"], cpu["bare"], strict=True))
    cells = [
        label,
        f"{middle['ours']:.3f}",
        f"{middle['peft']:.3f}",
        f"**{statistics.median(ratios):.3f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"{memory['ours']:.0f}",
        f"{memory['peft']:.0f}",
        f"**{memory['ours'] / memory['peft']:.2f}**",
        f"{first['ours']:.1f}",
        f"{first['peft']:.1f}",
        f"**{first['ours'] / first['peft']:.2f}**",
        f"{loop:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["lora.LoRA", "full"])
    parser.add_argument("--precisions", nargs="+", default=["no"], choices=["no", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="in each round")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--latent-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    print(HEAD)
    print("|---" * HEAD.count(" | ") + "|---|")
    with tempfile.TemporaryDirectory() as folder:
        model, data = write_material(Path(folder), latent_size=options.latent_size)
        layers = adapted_layers(model)
        scaling_factor = json.loads((model / "vae/config.json").read_text())["scaling_factor"]
        for kind in options.kinds:
            for precision in options.precisions:
                settings = {
                    "folder": folder,
                    "kind": kind,
                    "layers": layers,
                    "scaling_factor": scaling_factor,
                    "threads": options.threads,
                    "config": make_config(
                        model, data, kind=kind, precision=precision, batch_size=options.batch_size
                    ),
                }
                found = measure(settings, rounds=options.rounds, steps=options.steps)
                print(describe(f"{kind}, {precision}", found), flush=True)
    return 0


def adapted_layers(model: Path) -> list[str]:
    """Paths within the UNet of the layers that a LoRA is beside."""
    from modules import models

    layers = models.load(str(model)).adapter_layers(["unet"], conv=False)
    return [path.removeprefix("unet.") for path in layers]


if __name__ == "__main__":
    sys.exit(main())
