"""Measure what each way of training learns, on the tiny base model, and write docs/quality.md.

python bench/quality.py

Each recipe draws its pictures, trains as its YAML says, loads what was saved, and has pictures
drawn before and after graded by their pixels alone. Everything lies in the work folder; results of
recipes that are not run again are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

MODEL = "assets/tiny-sd"
INTRODUCTION = """\
What each way of training learns on the tiny base model of the quickstart (`{model}`), measured by

    {command}

which measures all rows, or with `--only NAME` some of them and keeps the others. Each recipe draws
its own pictures, is trained through its YAML as any other run, and is loaded from the files that it
saved; "before" is the same with untrained networks. Prompts and noise are the same before and
after, and the pictures are graded by their pixels alone (`bench/shape_classifier.py`,
`bench/quality_grades.py`). Settings were chosen at seed 0, or are those of the LoCon's row. The
seed of a row, below, is that of the training's pictures and noise and of the prompts and noise of
the drawn pictures, none of which are those of another seed.

- **New concept**: polaroids, which the base can't draw, among plain pictures. A picture is as
  captioned if shape, both colours, and a polaroid's frame (if and only if it is asked for) are.
  Old captions ask for no polaroid and should keep their look.
- **PFG**: 300 plain pictures, all captions empty. Features: the colours and the foreground's
  part of each cell of an 8x8 grid, 256 numbers taken from the pixels. Asked for by the features of
  pictures that training has not seen.
- **ControlNet**: 300 plain pictures with shapes anywhere, small and large. The guide is the shape's
  outline; captions say neither place nor size.
- **Mask**: the same polaroids, each with a blue mark on its lower margin. The mask is zero there.
- **Odd pictures**: noise that is captioned as polaroids, 12 beside 40 true ones.
- **Dark pictures**: shapes in green, red and blue alone, of which captions say only "dark". They
  are the darkest that the base's autoencoder can draw; their mean brightness is 0.39.
- **Subject**: one shape in one colour before many backgrounds, by a name that says nothing of its
  look: an orange cross, which the base can draw, for textual inversion; else an orange heart, which
  it can't. Dreambooth calls it "sks square"; class images are 64 squares that the base drew.
- **First and second**: hearts of all colours are learned on top of a LoCon that was trained on
  polaroids before; "both at once" asks for polaroids of hearts, which neither has seen."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _make_parser().parse_args(argv)

    from modules.console import quiet_libraries, set_up_logging

    quiet_libraries()
    set_up_logging()

    from bench.quality_runs import Drawn, measure
    from bench.quality_table import read_results, write_results, write_table
    from bench.recipes import RECIPES
    from modules.errors import ConfigError, RunError

    unknown = [name for name in options.only or () if name not in RECIPES]
    if unknown:
        print(
            f"--only: {', '.join(unknown)} is no recipe; use some of {', '.join(RECIPES)}",
            file=sys.stderr,
        )
        return 2
    kept = Path(options.work) / "results.json"
    drawn: Drawn = {}
    for name in options.only or RECIPES:
        try:
            result = measure(
                name,
                RECIPES[name],
                model=options.model,
                work=Path(options.work),
                count=options.count,
                seed=options.seed,
                steps=options.steps,
                drawn=drawn,
            )
        except (ConfigError, RunError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
        # Read again each time: another process may have measured other recipes meanwhile.
        results = {**read_results(kept), name: result}
        results = {known: results[known] for known in RECIPES if known in results}
        write_results(kept, results)
        introduction = INTRODUCTION.format(model=options.model, command=_command(options))
        write_table(Path(options.output), results, introduction=introduction)
        for grade in result.grades:
            print(f"{name}: {grade.measure}: {grade.before:.3f} -> {grade.after:.3f}")
    print(f"{options.output}: written; pictures and YAMLs are in {options.work}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes; without it all")
    parser.add_argument("-o", "--output", default="docs/quality.md", help="page to write")
    parser.add_argument("--work", default="output/quality", help="folder of data, runs, pictures")
    parser.add_argument("--model", default=MODEL, help="base model")
    parser.add_argument("--count", type=int, default=60, help="pictures of each kind to draw")
    parser.add_argument("--seed", type=int, default=1, help="of data, training and questions")
    parser.add_argument("--steps", type=int, help="instead of each recipe's own, to try it out")
    return parser


def _command(options: argparse.Namespace) -> str:
    """Write the command of the whole table with these options, where they aren't the default."""
    words = ["python bench/quality.py"]
    for name in ("count", "seed", "steps"):
        if getattr(options, name) != _make_parser().get_default(name):
            words.append(f"--{name} {getattr(options, name)}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
