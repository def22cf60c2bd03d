"""The lists in `networks/keys/`: what our networks write for the published models.

`PYTHONPATH=. python tests/frozen_keys.py` writes them anew. Only when a list is meant to change:
`git diff` then shows what other programs will see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules.models.published import published_model
from networks.controlnet import ControlNet
from networks.hypernetwork import Hypernetwork
from networks.lora import LoRA

FOLDER = Path(__file__).parent / "networks" / "keys"
BOTH = ("unet", "text_encoders")


def layer_lines(model: Any) -> list[str]:
    """`<name> <shape of the weight>` of all layers; `+` before those that conv_rank adds."""
    plain, conv = LoRA(targets=BOTH), LoRA(targets=BOTH, conv_rank=8)
    for network in (plain, conv):
        network.attach(model)
        network.detach()
    return sorted(
        f"{'' if name in plain.layers else '+'}{name} {shape_text(conv._base[name].weight)}"
        for name in conv.layers
    )


def controlnet_lines(model: Any) -> list[str]:
    """`<key> <shape>` of a new ControlNet."""
    network = ControlNet()
    network.attach(model)
    return sorted(f"{key} {shape_text(t)}" for key, t in network.net.state_dict().items())


def hypernetwork_lines(model: Any) -> list[str]:
    """`<width> <number> <key> <shape>` of a new hypernetwork's perceptrons."""
    network = Hypernetwork()
    network.attach(model)
    network.detach()
    return sorted(
        f"{width} {number} {key} {shape_text(tensor)}"
        for width, pair in network.pairs.items()
        for number, perceptron in enumerate(pair)
        for key, tensor in perceptron.state_dict().items()
    )


def shape_text(tensor: Any) -> str:
    return "x".join(map(str, tensor.shape))


def read(family: str, kind: str) -> list[str]:
    """The lines of a frozen list."""
    return (FOLDER / f"{family}_{kind}.txt").read_text(encoding="utf-8").splitlines()


KINDS = {
    "layers": layer_lines,
    "controlnet": controlnet_lines,
    "hypernetwork": hypernetwork_lines,
}


def main() -> None:
    for family in ("sd1", "sd2", "sdxl"):
        model = published_model(family)
        for kind, lines in KINDS.items():
            path = FOLDER / f"{family}_{kind}.txt"
            path.write_text("\n".join(lines(model)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
