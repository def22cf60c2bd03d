"""Convert a ControlNet between diffusers' directory and the single file that other programs read.

python tools/convert_controlnet.py output/pose/pose -o pose.safetensors
python tools/convert_controlnet.py pose.safetensors -o pose -m <base model>

tools/convert.py does this too, and more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command
from tools.controlnet_files import to_directory, to_single_file


def main(argv: Sequence[str] | None = None) -> int:
    words = {"input": "diffusers directory, .safetensors or .pth", "output": "the other of them"}
    parser = make_parser(__doc__, dtype="fp16", **words)
    parser.add_argument("-m", "--model", help="base model, needed to make a directory of a file")
    arguments = parser.parse_args(argv)
    if not arguments.input.is_dir() and arguments.model is None:
        parser.error("a file needs --model, the base model that the ControlNet is for")

    def job() -> str:
        source, output, dtype = arguments.input, arguments.output, arguments.dtype
        if source.is_dir():
            count = to_single_file(source, output, dtype=dtype)
        else:
            count = to_directory(source, output, model=arguments.model, dtype=dtype)
        return f"{output}: {count} tensors"

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
