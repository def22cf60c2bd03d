"""What tests of models in one file share: changed copies of a file, exact comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def assert_equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def rewrite(file: Path, output: Path, *, remove: str = "", add: dict | None = None) -> Path:
    """The file without the tensors whose names begin so, and with others; the metadata stays."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    kept = {k: v for k, v in load_file(file).items() if not remove or not k.startswith(remove)}
    save_file({**kept, **(add or {})}, output, metadata=metadata)
    return output
