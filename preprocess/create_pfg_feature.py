"""The command tagger_control.py by its other name."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from preprocess.tagger_control import main
from preprocess.tagger_control import tagger_control as create_pfg_feature

__all__ = ["create_pfg_feature", "main"]

if __name__ == "__main__":
    sys.exit(main())
