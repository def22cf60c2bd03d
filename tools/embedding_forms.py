"""Textual inversions as AUTOMATIC1111's .pt and as .safetensors.

The .pt is a dictionary in which `string_to_param` has the vectors under `*`, beside a name and a
few numbers, which become metadata and back. Those for two text encoders have one form in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.files import replacing
from tools.command import check_new
from tools.containers import PICKLES, in_dtype, read_file, write_file

_NUMBER = 265  # of `*` in CLIP's vocabulary, as that program writes it
_TOLD = ("step", "sd_checkpoint", "sd_checkpoint_name")


def is_embedding(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with tensors of these shapes by name is a textual inversion.

    diffusers calls the only tensor by its token.
    """
    from networks.files import read_tensors

    if not shapes:
        return "string_to_param" in read_tensors(file)
    if shapes.keys() in ({"emb_params"}, {"clip_l", "clip_g"}):
        return True
    (name, shape), *more = shapes.items()
    return not more and "." not in str(name) and len(shape) in (1, 2)


def convert_embedding(file: Path, output: Path, *, dtype: str | None = None) -> int:
    """Write a textual inversion in the other form; returns its vectors.

    Raises:
        ValueError: the file is none, or `output` exists.
    """
    check_new(output)
    tensors, metadata = _read(file)
    tensors = {name: in_dtype(name, vectors, dtype) for name, vectors in tensors.items()}
    if output.suffix not in PICKLES or len(tensors) > 1:
        write_file(output, tensors, metadata)
    else:
        _write_pickle(output, tensors["emb_params"], metadata)
    return len(next(iter(tensors.values())))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The vectors, (n, width), by the names of .safetensors files, and what is told of them."""
    import torch

    from networks.files import read_tensors

    if file.suffix == ".safetensors":
        tensors, metadata = read_file(file)
    else:
        content: dict[str, Any] = dict(read_tensors(file))
        tensors = content.get("string_to_param", content)
        told = {key: content.get(key) for key in ("name", *_TOLD)}
        metadata = {k: str(v) for k, v in told.items() if v is not None}
        if "name" in metadata:
            metadata["ti_token"] = metadata.pop("name")
    vectors = {k: torch.atleast_2d(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    if not vectors or (len(vectors) > 1 and vectors.keys() != {"clip_l", "clip_g"}):
        raise ValueError(f"{file}: is no textual inversion of one token")
    if len(vectors) == 1:
        vectors = {"emb_params": next(iter(vectors.values()))}
    return vectors, metadata


def _write_pickle(output: Path, vectors: Any, metadata: dict[str, str]) -> None:
    import torch

    told: dict[str, Any] = {key: metadata.get(key) for key in _TOLD}
    told["step"] = int(told["step"]) if told["step"] else None
    content = {
        "string_to_token": {"*": _NUMBER},
        "string_to_param": {"*": vectors},
        "name": metadata.get("ti_token", output.stem),
        **told,
    }
    with replacing(output) as temporary:
        torch.save(content, temporary)
