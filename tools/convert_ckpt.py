"""Take the tensors out of a .ckpt that holds other objects too, without running anything in it.

python tools/convert_ckpt.py model.ckpt -o model.safetensors

tools/convert.py does this too, and more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command
from tools.containers import change_container


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, input="a .ckpt, .pt or .pth", output="a .safetensors")
    options = vars(parser.parse_args(argv))

    def job() -> str:
        count = change_container(options["input"], options["output"])
        return f"{options['output']}: {count} tensors"

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
