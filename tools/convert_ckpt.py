"""Take the tensors out of a .ckpt that holds other objects too, without running anything in it.

python tools/convert_ckpt.py model.ckpt -o model.safetensors
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.console import quiet_libraries, survive_narrow_encodings
from modules.files import replacing

logger = logging.getLogger(__name__)


def convert_ckpt(file: Path, output: Path) -> int:
    """Write the tensors of `file` as .safetensors, bit by bit as they are; returns their number.

    Raises:
        ValueError: there are none, or the file can't be read.
    """
    from safetensors.torch import save_file

    from tools.inert_pickle import read_tensors

    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if output.exists():
        raise ValueError(f"{output}: exists already; give another name")
    tensors, ignored = read_tensors(file)
    if not tensors:
        raise ValueError(f"{file}: holds no tensors by name")
    if ignored:
        logger.info("left out, and not run: %s", ", ".join(ignored))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(output) as temporary:
        save_file(whole, temporary, metadata={"format": "pt"})
    return len(whole)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="a .ckpt, .pt or .pth")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .safetensors")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    survive_narrow_encodings()
    quiet_libraries()
    try:
        count = convert_ckpt(arguments.input, arguments.output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
