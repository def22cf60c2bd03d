"""Hostile files of weights, made by code: what is in each, by the name that it goes under."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

HUGE = 10**6


class Touch:
    """Unpickled by an ordinary reader, it makes a file: proof that code has run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A .safetensors file with a header as it is given, which may lie about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def tensor(shape: Any = (4,), dtype: str = "F32", end: int = 16) -> dict[str, Any]:
    """A header's entry of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}


def saved(content: Any, **options: Any) -> bytes:
    """A file of `torch.save`."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bad_checkpoints(canary: Path) -> dict[str, bytes]:
    """Files that no reader may take; several would make `canary` if they were run."""
    data, evil = bytes(16), Touch(canary)
    weights = {"state_dict": {"a": torch.zeros(4, 4)}, "callbacks": evil}
    whole = safetensors({"a": tensor()}, data)
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    return {
        "terabyte.safetensors": safetensors({}, length=2**40),
        "longest.safetensors": safetensors({}, length=99_000_000),
        "negative.safetensors": safetensors({}, length=2**64 - 5),
        "claims.safetensors": safetensors({"a": tensor((HUGE, HUGE), end=4 * HUGE**2)}),
        "backwards.safetensors": safetensors({"a": tensor(end=-16)}, data),
        "shape.safetensors": safetensors({"a": tensor("x")}, data),
        "fraction.safetensors": safetensors({"a": tensor((1.5,))}, data),
        "small.safetensors": safetensors({"a": tensor((), end=2)}, data[:2]),
        "no-shape.safetensors": safetensors({"a": {"dtype": "F32"}}, data),
        "deep.safetensors": safetensors(b"[" * 200_000),
        "latin.safetensors": safetensors(b"\xff\xfe{}"),
        "list.safetensors": safetensors([1]),
        "numbers.safetensors": safetensors({"__metadata__": {"a": 1}, "a": tensor()}, data),
        "words.safetensors": safetensors({"__metadata__": ["a"], "a": tensor()}, data),
        "cut.safetensors": whole[:-5],
        "more.safetensors": whole + b"more",
        "empty.safetensors": b"",
        "seven.safetensors": bytes(7),
        "text.safetensors": b"<html>404: not found</html>",
        "pickle.safetensors": pickle.dumps(evil),
        "empty.pt": b"",
        "text.ckpt": b"<html>404: not found</html>",
        "zip.pt": b"PK\3\4" + bytes(50),
        "cut.ckpt": saved(weights)[:800],
        "code-0.ckpt": pickle.dumps(evil, protocol=0),
        "code-4.pt": pickle.dumps(evil, protocol=4),
        "code.bin": pickle.dumps({"a": evil}, protocol=2),
        "old-code.pt": saved(weights, _use_new_zipfile_serialization=False),
        "list.pt": saved([1, 2]),
        "numbers.pt": saved({layer + ".lora_down.weight": 5, layer + ".lora_up.weight": "x"}),
        "safetensors.pt": whole,
    }


def weights_and_code(canary: Path) -> bytes:
    """A pickle that has weights, too: nothing but a conversion may read them."""
    weights = {"model.a.weight": torch.zeros(4, 4), "model.b.weight": torch.ones(4)}
    return saved({"state_dict": weights, "callbacks": Touch(canary)})
