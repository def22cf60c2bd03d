"""Merge adapters into a base model, or into one another, each with a weight.

python tools/merge.py cats.safetensors:0.8 style.safetensors:0.5 --base sd15.safetensors -o out
python tools/merge.py cats.safetensors:0.8:0.4 style.safetensors -o both.safetensors --rank 32

A file may have one weight for all of it, or one for the UNet and one for the text encoders; without
it is 1. With --base, an output that ends in .safetensors is one file, another a diffusers
directory. Without --base and --rank, the ranks of LoRAs add up, which is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command

if TYPE_CHECKING:
    from tools.adapter_sums import Source


def parse_source(text: str) -> Source:
    """`a.safetensors`, `a.safetensors:0.8`, or `a.safetensors:0.8:0.4` with the text's last.

    Raises:
        ValueError: there is no such file.
    """
    from tools.adapter_sums import Source

    weights: list[float] = []
    rest = text
    while len(weights) < 2 and not Path(rest).exists():
        rest, _, last = rest.rpartition(":")
        try:
            weights.insert(0, float(last))
        except ValueError:
            rest = ""
        if not rest:
            break
    if not rest or not Path(rest).exists():
        raise ValueError(f"{text}: there is no such file; write FILE, FILE:0.8 or FILE:0.8:0.4")
    unet, text_encoders = (weights * 2)[:2] if weights else (1.0, 1.0)
    return Source(Path(rest), unet, text_encoders)


def merge(
    adapters: Sequence[str],
    output: Path,
    *,
    base: str | None = None,
    model: str | None = None,
    rank: int | None = None,
    dtype: str = "fp16",
    device: str = "cpu",
) -> str:
    """Merge adapters, given as files with weights, into `base`, or without it into one LoRA.

    Raises:
        ValueError: see `tools.adapter_sums`; or an option is for the other case.
    """
    if base is not None and (rank is not None or model is not None):
        raise ValueError("--rank and --model are for adapters that become one; take out --base")
    if base is None and output.suffix != ".safetensors":
        raise ValueError(f"{output}: an adapter is a .safetensors; for a whole model give --base")
    from tools.adapter_sums import merge_adapters, merge_into_base

    sources = [parse_source(text) for text in adapters]
    if base is not None:
        return merge_into_base(sources, output, base=base, dtype=dtype, device=device)
    return merge_adapters(sources, output, rank=rank, model=model, dtype=dtype, device=device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, output="a file or directory that is not there", dtype="fp16")
    parser.add_argument("adapters", nargs="+", help="FILE, FILE:0.8 or FILE:0.8:0.4")
    parser.add_argument("--base", help="base model to merge into: directory, file or hub id")
    parser.add_argument("--rank", type=int, help="of the LoRA that adapters become, by SVD")
    parser.add_argument("--model", help="base model of LoHas, LoKrs and DoRAs that become a LoRA")
    parser.add_argument("--device", default="cpu", help="where it is computed: cpu, cuda")
    options = vars(parser.parse_args(argv))
    return run_command(lambda: merge(**options))


if __name__ == "__main__":
    sys.exit(main())
