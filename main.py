"""Train: `python main.py config.yaml [key.path=value ...] [--check]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

USAGE = "python main.py config.yaml [key.path=value ...] [--check [--contact-sheet FILE]]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description="Fine-tune a Stable Diffusion model as a YAML file says.",
        epilog="Try it: python main.py config/quickstart.yaml. Every key: config/README.md.",
    )
    parser.add_argument("config", help="YAML file, for instance config/lora.yaml")
    parser.add_argument(
        "overrides", nargs="*", help="values over the file's: train.learning_rate=1e-5"
    )
    parser.add_argument("--check", action="store_true", help="show the plan, train nothing")
    for option, what in (
        ("--contact-sheet", "with --check: draw images and captions as training sees them: a.png"),
        ("--report", "with --check: list all that the plan names a few of in this text file"),
    ):
        parser.add_argument(option, metavar="FILE", help=what)
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_intermixed_args(arguments)
    if (options.contact_sheet or options.report) and not options.check:
        parser.error("--contact-sheet and --report are for --check")

    from modules.config import keep_translation, load
    from modules.errors import ConfigError, Interrupted, RunError
    from modules.offline import stay_offline

    speaks = os.environ.get("RANK", "0") == "0"  # of several processes one
    try:
        config = load(options.config, *options.overrides)
        if config.model.offline:
            stay_offline()  # before anything is imported that reads it
        from modules.console import quiet_libraries, set_up_logging

        quiet_libraries()
        set_up_logging()
        if speaks:
            keep_translation(options.config, *options.overrides, check=options.check)
        from modules.lean_imports import import_diffusers, without_collecting

        with without_collecting():
            import_diffusers()
            from modules.out_of_memory import out_of_memory_explained
            from modules.trainer import Trainer
            from modules.trial import Trial

        with out_of_memory_explained(config):
            trial = Trial.writing(sheet=options.contact_sheet, report=options.report)
            trainer = Trainer.from_config(config, check=options.check and trial)
            if trainer is not None:
                trainer.train()
    except (ConfigError, RunError) as error:
        if speaks:
            print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except Interrupted as error:
        return error.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
