"""Make a LoRA of the difference between two models, the tuned one and its base, by SVD.

python tools/extract.py --base sd15 --tuned cats.safetensors -o cats_lora.safetensors --rank 32
python tools/extract.py --base sd15 --tuned cats -o cats_locon.safetensors --conv_rank 16

It says how much of the difference is kept, and what a LoRA has no place for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, output="a .safetensors that is not there", dtype="fp16")
    parser.add_argument("--base", required=True, help="directory, file or hub id")
    parser.add_argument("--tuned", required=True, help="the model that was made of it, likewise")
    parser.add_argument("--rank", type=int, default=32, help="of Linear layers; default: 32")
    parser.add_argument(
        "--conv_rank", "--conv-rank", type=int, help="take k x k convolutions too, with this rank"
    )
    parser.add_argument(
        *("--energy", "--min_energy", "--min-energy"),
        type=float,
        help="of a layer only as many ranks as hold this part of its difference's squares: 0.95",
    )
    parser.add_argument("--exact", action="store_true", help="no random projections; takes longer")
    parser.add_argument("--device", default="cpu", help="where it is computed: cpu, cuda")
    options = vars(parser.parse_args(argv))

    def job() -> str:
        from tools.model_difference import extract

        return extract(**options)

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
