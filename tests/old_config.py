"""Configs in the key names of the original sd-trainer, for the tests of their translation."""

from __future__ import annotations

from pathlib import Path

from modules.config import Config, load

EXAMPLES = Path(__file__).parent / "modules" / "legacy"

BASE = """\
model: {input_path: model}
dataset:
  module: utils.dataset.BaseDataset
  args: {path: data}
train:
  train_unet: true
  epochs: 10
"""


def read(text: str, *overrides: str) -> Config:
    """Load a text as old.yaml of the current directory."""
    Path("old.yaml").write_text(text, encoding="utf-8")
    return load("old.yaml", *overrides)


def make_place(directory: Path) -> Path:
    """Fill a directory with a model, a dataset and weights that look right from outside."""
    for folder in ("model", "data", "other"):
        (directory / folder).mkdir()
        (directory / folder / "model_index.json").write_text("{}", encoding="utf-8")
    (directory / "weights.pt").write_bytes(b"")
    return directory
