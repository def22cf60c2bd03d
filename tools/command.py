"""What the commands of tools/ share: a parser made of the docstring, an end without a traceback.

A tool is a function with keyword arguments, and a thin command in the same file:

    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from tools.command import make_parser, run_command

    def main(argv: Sequence[str] | None = None) -> int:
        parser = make_parser(__doc__, input="an adapter", output="a .safetensors", dtype="fp16")
        parser.add_argument("--rank", type=int, help="the new rank")
        options = vars(parser.parse_args(argv))
        return run_command(lambda: _summary(**options))

    if __name__ == "__main__":
        sys.exit(main())

`_summary` does the work and returns what is printed at the end. Torch is imported within functions,
so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from modules.console import quiet_libraries, survive_narrow_encodings

DTYPES = ("fp32", "fp16", "bf16")


def make_parser(
    doc: str | None,
    *,
    input: str | None = None,
    output: str | None = None,
    dtype: str | None = None,
) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a tool's file.

    `input` and `output` say what they are; both are paths, and both have to be given. `dtype` is
    the default of --dtype, "" to leave values as they are. What is None is left out.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if input is not None:
        parser.add_argument("input", type=Path, help=input)
    if output is not None:
        parser.add_argument("-o", "--output", type=Path, required=True, help=output)
    if dtype is not None:
        told = dtype or "as in the input"
        parser.add_argument(
            "--dtype", choices=DTYPES, default=dtype or None, help=f"default: {told}"
        )
    return parser


def run_command(job: Callable[[], str | None]) -> int:
    """Run a tool's job and print what it returns; errors that are for the person are one line.

    Returns the exit status: 0, 2 for a ValueError or OSError, 130 for Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    survive_narrow_encodings()
    quiet_libraries()
    try:
        summary = job()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if summary:
        print(summary)
    return 0


def check_new(output: Path, *, suffix: str | None = None) -> None:
    """Check, before anything expensive, that an output is new and can be written.

    Raises:
        ValueError: `output` exists, doesn't end with `suffix`, or nothing can be written there.
    """
    if suffix is not None and output.suffix != suffix:
        raise ValueError(f"{output}: would be a {suffix} file; give a name that ends so")
    if output.exists():
        raise ValueError(f"{output}: exists already; give another name")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{output}: can't be written ({folder}: {reason})") from error
