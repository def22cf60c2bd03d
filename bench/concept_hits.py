"""How well a quickstart LoRA learned: hit rates of the pixel classifier before and after it.

python bench/concept_hits.py --lora output/quickstart/quickstart.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class ConceptHits:
    """Shares of pictures that show what their caption says, 0 to 1."""

    new_before: float
    new_after: float
    old_before: float
    old_after: float

    def lines(self) -> list[str]:
        """A small table."""
        return [
            "captions        before  after",
            f"new concept     {self.new_before:6.1%}  {self.new_after:6.1%}",
            f"old captions    {self.old_before:6.1%}  {self.old_after:6.1%}",
        ]


def concept_hits(
    *,
    model: str,
    lora: str,
    count: int = 60,
    style: str = "polaroid",
    guidance_scale: float = 3.5,
    num_inference_steps: int = 20,
    seed: int = 1000,
    width: int = 64,
    height: int = 64,
) -> ConceptHits:
    """Draw `count` pictures of each kind without and with a LoRA and count the hits."""
    import numpy as np

    from bench.shape_classifier import hit
    from modules.drawing import draw_images
    from modules.models import load
    from networks.lora import LoRA
    from preprocess.draw_shapes import BASE_SHAPES, sample_scene

    base = load(model)
    rng = np.random.default_rng(seed)
    new = [sample_scene(rng, shapes=BASE_SHAPES, style=style).caption for _ in range(count)]
    old = [sample_scene(rng, shapes=BASE_SHAPES).caption for _ in range(count)]

    def rate(captions: list[str]) -> float:
        hits = 0
        for start in range(0, count, 20):
            part = captions[start : start + 20]
            images = draw_images(
                base,
                [],
                prompts=part,
                seeds=range(seed + start, seed + start + len(part)),
                size=(width, height),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
            )
            hits += sum(hit(image, caption) for image, caption in zip(images, part, strict=True))
        return hits / count

    before = rate(new), rate(old)
    network = LoRA(**arguments_of(lora))
    network.attach(base)
    network.load(Path(lora))
    return ConceptHits(before[0], rate(new), before[1], rate(old))


def arguments_of(lora: str | Path) -> dict[str, Any]:
    """The targets and convolution rank that a LoRA was trained with, from its metadata."""
    import json

    from safetensors import safe_open

    with safe_open(lora, framework="pt") as file:
        metadata = file.metadata() or {}
    given = json.loads(metadata.get("ss_network_args", "{}"))
    arguments: dict[str, Any] = {"targets": tuple(given.get("targets", "unet").split())}
    if "conv_dim" in given:
        arguments["conv_rank"] = int(given["conv_dim"])
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="assets/tiny-sd", help="base model")
    parser.add_argument("--lora", required=True, help=".safetensors file")
    parser.add_argument("--count", type=int, default=60, help="pictures of each kind")
    options = parser.parse_args(argv)
    from modules.console import quiet_libraries

    quiet_libraries()
    print("\n".join(concept_hits(**vars(options)).lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
