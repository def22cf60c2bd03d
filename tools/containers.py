"""Tensors in files, whatever is in them: .safetensors, or pickled ones, of which nothing is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from modules.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
FILES = (".safetensors", *PICKLES)


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata, bit by bit as they are; what else is in it is logged.

    Raises:
        ValueError: there are none, or the file can't be read.
    """
    from networks import files
    from tools.inert_pickle import read_tensors

    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    metadata: dict[str, str] = {}
    if is_zipfile(file):
        tensors, ignored = read_tensors(file)
        if ignored:
            logger.info("left out, and not run: %s", ", ".join(ignored))
    else:  # .safetensors, or pickled before PyTorch 1.6, which knows how to run nothing
        tensors, metadata = files.read_tensors(file), files.read_metadata(file)
    if not tensors:
        raise ValueError(f"{file}: holds no tensors by name")
    return tensors, metadata


def shapes_of(file: Path) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name; of a large one no more is read, where that can be.

    Raises:
        ValueError: the file can't be read.
    """
    from modules.models.tensor_file import open_tensors

    try:
        return open_tensors(file).shapes
    except ValueError:
        if not is_zipfile(file):
            raise
        return {name: tuple(tensor.shape) for name, tensor in read_file(file)[0].items()}


def write_file(output: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a .safetensors, or to a pickled file, which has no place for metadata.

    Hashes of the file's own in the metadata become those of the new one.
    """
    import torch
    from safetensors.torch import save_file

    from modules.safetensors_header import HASHES, fill_in_hashes

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(output) as temporary:
        if output.suffix in PICKLES:
            if metadata.keys() - {"format"}:
                logger.info("%s: a %s has no place for metadata", output, output.suffix)
            torch.save(whole, temporary)
        else:
            places = {key: HASHES[key] for key in HASHES.keys() & metadata.keys()}
            save_file(whole, temporary, metadata={"format": "pt", **metadata, **places})
            fill_in_hashes(temporary)


def change_container(file: Path, output: Path, *, dtype: str | None = None) -> int:
    """Write the tensors of `file` in another container, or in another precision; returns how many.

    Raises:
        ValueError: there are none, the file can't be read, or `output` exists.
    """
    from tools.command import check_new

    check_new(output)
    tensors, metadata = read_file(file)
    write_file(output, {k: in_dtype(k, t, dtype) for k, t in tensors.items()}, metadata)
    return len(tensors)


def stored_dtype(source: Path, *, start: str = "") -> str:
    """The precision, by its short name, of the tensors whose names begin so, fp32 if none is known.

    In a directory that of its files is meant.
    """
    from modules.models.tensor_file import open_tensors
    from modules.savers import DTYPES

    names = {dtype: name for name, dtype in DTYPES.items()}
    files = (
        sorted(f for f in source.iterdir() if f.suffix in FILES) if source.is_dir() else [source]
    )
    for file in files:
        opened = open_tensors(file)
        with opened.reading() as read:
            for name in opened.shapes:
                if name.startswith(start):
                    return names.get(read(name).dtype, "fp32")
    return "fp32"


def in_dtype(key: str, tensor: Any, dtype: str | None) -> Tensor:
    """A tensor in another precision; scales and magnitudes stay as exact as they are."""
    from modules.savers import DTYPES

    exact = key.rpartition(".")[2] in ("alpha", "dora_scale", "lora_magnitude_vector")
    if dtype is None or exact or not tensor.is_floating_point():
        return tensor
    return tensor.to(DTYPES[dtype])
