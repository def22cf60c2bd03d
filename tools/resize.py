"""Give a LoRA another rank: of each layer the greatest singular values are kept.

python tools/resize.py cats.safetensors -o cats-8.safetensors --rank 8
python tools/resize.py cats.safetensors -o cats-small.safetensors --energy 0.95
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__, input="a LoRA, of any program", output="a .safetensors that is not there", dtype=""
    )
    parser.add_argument("--rank", type=int, help="at most so many singular values of a layer")
    parser.add_argument(
        "--energy", type=float, help="so many that they hold this part of the squares: 0.95"
    )
    parser.add_argument(
        "--threshold", type=float, help="those of at least this part of the greatest: 0.1"
    )
    parser.add_argument("--device", default="cpu", help="where it is computed: cpu, cuda")
    options = vars(parser.parse_args(argv))

    def job() -> str:
        from tools.adapter_ranks import resize

        return resize(**options)

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
