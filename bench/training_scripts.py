"""Measure a training step beside that of diffusers' own script, by whole processes.

    python bench/training_scripts.py --peer train_text_to_image_lora.py --write

`--peer` names examples/text_to_image/train_text_to_image_lora.py of diffusers, which wants
`pip install peft datasets torchvision`; without it the page says that it wasn't there. Both train a
LoRA of rank 16 on the same layers of the same model folder, from the same pictures. A step costs
what a run of many steps takes more of the processor than one of few.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.processes import Taken, run_whole
from bench.report import conditions, ratio, table, write_section
from bench.training_material import make_config
from bench.training_models import ARCHITECTURES, Architecture, write_model

TITLE = "Against training scripts"
HEADER = (
    *("script", "model", "CPU s a step, ours", "the script's", "ours / the script's"),
    *("peak MiB, ours", "the script's", "ours / the script's"),
)
TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
"""Layers that the script has adapters beside; it has no option for others."""
NOTES = (
    "Whole processes with the defaults of each but for what is named: a LoRA of rank 16 on the "
    "layers of attention (`to_k`, `to_q`, `to_v`, `to_out.0`), batches of 2, latents of 32x32, "
    "fp32, AdamW, one thread. A step costs the difference of two runs by that of their steps. Ours "
    "reads latents and text that were cached before; the script has no cache, and encodes images "
    "and captions in each step. `reduced` is SD1's UNet with a fifth of its channels, with the "
    "quickstart's VAE and text encoder, which are tiny and cost the script little; of `whole` "
    "these too are SD1's with a fifth of their channels."
)
SKIPPED = (
    "Not measured here: the script isn't part of diffusers' package. `python "
    "bench/training_scripts.py --peer PATH --write` measures it."
)
MAIN = Path(__file__).resolve().parent.parent / "main.py"
RANK = 16
BATCH_SIZE = 2
_RATE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["reduced", "whole"]
    parser.add_argument("--peer", type=Path, metavar="PATH", help="train_text_to_image_lora.py")
    parser.add_argument("--architectures", nargs="+", default=names, choices=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", nargs=2, type=int, default=[5, 25], help="of both runs")
    parser.add_argument("--write", action="store_true", help="write it into docs/benchmarks.md")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    if options.peer is None:
        lines = [SKIPPED]
    else:
        if not options.peer.is_file():
            parser.error(f"--peer: {options.peer}: no such file")
        few, many = sorted(options.steps)
        lines = table(HEADER, rows(options, few=few, many=many))
        lines += ["", f"{NOTES} The script asks for diffusers {wanted_version(options.peer)}."]
    if options.write:
        shown = [Path(each).name if each == str(options.peer) else each for each in given]
        write_section(TITLE, [conditions("bench/training_scripts.py", shown), "", *lines])
    print("\n".join(lines))
    return 0


def rows(options: argparse.Namespace, *, few: int, many: int) -> list[list[str]]:
    """Measure the script on each model."""
    found = []
    for name in options.architectures:
        with tempfile.TemporaryDirectory() as place:
            folder, architecture = Path(place), ARCHITECTURES[name]
            model, data = write_material(folder, architecture, images=BATCH_SIZE * many)
            sides = {
                "ours": our_command(folder, model, data),
                "peer": peer_command(options.peer, folder, model, architecture),
            }
            measured = alternate(sides, few=few, many=many, rounds=options.rounds)
        found.append([options.peer.stem, name, *describe(measured, steps=many - few)])
        print(" | ".join(found[-1]), flush=True)
    return found


def write_material(folder: Path, architecture: Architecture, *, images: int) -> tuple[Path, Path]:
    """Write pictures/ with metadata.jsonl, a model, and the dataset that is made of them.

    Returns the directories of the model and the dataset.
    """
    import numpy as np

    from preprocess.bucketing import bucketing
    from preprocess.latent import latent
    from preprocess.scenes import draw_scene, sample_scene
    from preprocess.text_cache import cache_text

    model, data, pictures = (folder / name for name in ("model", "data", "pictures"))
    write_model(model, architecture)
    pictures.mkdir()
    side = architecture.latent_size * architecture.pixels
    rng, lines = np.random.default_rng(0), []
    for number in range(images):
        scene, name = sample_scene(rng, size=(side, side)), f"{number:04d}.png"
        draw_scene(scene).save(pictures / name)
        lines.append(json.dumps({"file_name": name, "text": scene.caption}) + "\n")
    (pictures / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    limits = {"resolution": side, "min_length": side, "max_length": side}
    bucketing(directory=pictures, output=data, step=architecture.pixels, num_workers=1, **limits)
    latent(directory=data, model=str(model))
    cache_text(directory=data, model=str(model))
    return model, data


def our_command(folder: Path, model: Path, data: Path) -> list[str]:
    """`python main.py` on cached latents and text, but for the number of steps."""
    import yaml

    targets = [f"unet.*.{layer}" for layer in TARGETS]
    config = make_config(
        *(model, data),
        kind="lora.LoRA",
        precision="no",
        batch_size=BATCH_SIZE,
        args={"rank": RANK, "targets": targets},
    )
    config["train"]["learning_rate"] = _RATE
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [sys.executable, str(MAIN), str(path), "train.max_train_steps={steps}"]


def peer_command(script: Path, folder: Path, model: Path, architecture: Architecture) -> list[str]:
    """The script on the pictures, but for the number of steps."""
    arguments = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": folder / "pictures",
        "output_dir": folder / "peer",
        "cache_dir": folder / "cache",
        "resolution": architecture.latent_size * architecture.pixels,
        "train_batch_size": BATCH_SIZE,
        "rank": RANK,
        "learning_rate": _RATE,
        "lr_warmup_steps": 0,
        "mixed_precision": "no",
        "max_train_steps": "{steps}",
    }
    return [sys.executable, str(script), *(f"--{key}={value}" for key, value in arguments.items())]


def alternate(
    sides: Mapping[str, Sequence[str]], *, few: int, many: int, rounds: int
) -> dict[str, list[tuple[Taken, Taken]]]:
    """Run all sides in rounds, with few steps and with many; the first few warm caches.

    `{steps}` in a command stands for their number.
    """
    found: dict[str, list[tuple[Taken, Taken]]] = {name: [] for name in sides}

    def run(command: Sequence[str], steps: int) -> Taken:
        filled = [part.replace("{steps}", str(steps)) for part in command]
        return run_whole(filled, variables={"OMP_NUM_THREADS": "1"})

    for command in sides.values():
        run(command, few)
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            found[name].append((run(sides[name], few), run(sides[name], many)))
    return found


def describe(found: Mapping[str, Sequence[tuple[Taken, Taken]]], *, steps: int) -> list[str]:
    """The cells of a row, but for its labels."""
    costs = {
        name: [(many.cpu - few.cpu) / steps for few, many in taken] for name, taken in found.items()
    }
    memory = {name: [many.mib for _, many in taken] for name, taken in found.items()}
    sides = ("ours", "peer")
    return [
        *(f"{statistics.median(costs[name]):.3f}" for name in sides),
        ratio(*(costs[name] for name in sides)),
        *(f"{statistics.median(memory[name]):.0f}" for name in sides),
        ratio(*(memory[name] for name in sides)),
    ]


def wanted_version(script: Path) -> str:
    """The least version of diffusers that a script asks for, in its own words."""
    text = script.read_text(encoding="utf-8")
    found = re.search(r"check_min_version\(\"([^\"]+)\"\)", text)
    return f"{found.group(1)} or newer" if found else "of any version"


if __name__ == "__main__":
    sys.exit(main())
