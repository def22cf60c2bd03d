"""Make the step of a bundle again that had a loss or gradient which was not finite.

python tools/replay.py output/cat/nan_step_00001200
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command


def replay(bundle: Path) -> str:
    """Report on the step of a bundle, on this machine; nothing in its run's folder is changed.

    Raises:
        ValueError: the directory is no such bundle, or model or dataset of its run are not there.
    """
    import json
    import tempfile

    from modules.checkpoint import TrainState
    from modules.config import load
    from modules.nonfinite import BATCHES, REPORT, STATE, examine, read_batches
    from modules.run_identity import as_begun
    from modules.trainer import Trainer

    if not (bundle / BATCHES).is_file():
        raise ValueError(f"{bundle}: is no bundle of a step (it has no {BATCHES})")
    config = as_begun(load(bundle.parent / "config.yaml"))
    with tempfile.TemporaryDirectory() as elsewhere:
        config = replace(
            config,
            save=replace(config.save, directory=elsewhere),
            sample=None,
            loggers={},
            train=replace(config.train, rehearse=False),
        )
        trainer = Trainer.from_config(config)
        assert trainer is not None, "a new run is never finished"

        state = TrainState.load(bundle / STATE)
        state.apply(trainer)
        rank = json.loads((bundle / REPORT).read_text(encoding="utf-8"))["rank"]
        report = examine(trainer, read_batches(bundle), number=trainer.step, rank=rank)
    return str(report)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path, help="a directory nan_step_<n> of a run")
    arguments = parser.parse_args(argv)
    return run_command(lambda: replay(arguments.bundle))


if __name__ == "__main__":
    sys.exit(main())
