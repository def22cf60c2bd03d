"""The header of a .safetensors file, read and changed without its tensors and without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MOST_HEADER = 100_000_000
"""Bytes; safetensors reads no longer ones."""

_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
_CHUNK = 1 << 20
_LEGACY = (0x100000, 0x110000)


@dataclass(frozen=True)
class Header:
    """What stands before the tensors of a file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Any]]
    """By name: dtype, shape, data_offsets, which count from `start`."""
    start: int
    """Of the first tensor's bytes."""


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        ValueError: it is no .safetensors file, or one that is cut short.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in dict(metadata).values()):
            raise ValueError("metadata that are no texts")
        end = max((_end(name, entry) for name, entry in header.items()), default=0)
        size = path.stat().st_size
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes, its header says {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: can't be read as .safetensors ({error})") from error
    return Header(metadata, header, 8 + length)


def hash_tensors(path: Path) -> str:
    """Hash all bytes behind the header: `sshs_model_hash` of kohya-ss/sd-scripts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_legacy(path: Path, header: Header) -> str:
    """Hash 64 KiB behind the first MiB, as if the file had the `ss_*` metadata alone.

    `sshs_legacy_hash` of kohya-ss/sd-scripts, eight digits; A1111's first hash of checkpoints.
    """
    own = {key: value for key, value in header.metadata.items() if key.startswith("ss_")}
    bare = _serialize(own, header.tensors)
    digest = hashlib.sha256()
    for part in _span(bare, path, header.start, *_LEGACY):
        digest.update(part)
    return digest.hexdigest()[:8]


def hash_head(path: Path) -> str:
    """Hash 64 KiB behind the first MiB of a file as it is, eight digits: `ss_sd_model_hash`."""
    with path.open("rb") as file:
        file.seek(_LEGACY[0])
        return hashlib.sha256(file.read(_LEGACY[1] - _LEGACY[0])).hexdigest()[:8]


HASHES = {
    "sshs_model_hash": "0" * 64,
    "sshs_legacy_hash": "0" * 8,
    "modelspec.hash_sha256": "0x" + "0" * 64,
}
"""Keys of a file's own hashes, and what holds their place until the file is written."""


def with_places(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with a place for each hash; ModelSpec's only beside its other keys."""
    is_spec = "modelspec.sai_model_spec" in metadata
    places = {k: v for k, v in HASHES.items() if is_spec or not k.startswith("modelspec.")}
    return {**metadata, **places}


def fill_in_hashes(path: Path) -> None:
    """Put the hashes of a file in the place of those of `HASHES` that its header has.

    They are as long as what held their place, so that nothing of the file moves.
    """
    header = read_header(path)
    tensors = hash_tensors(path)
    values = {
        "sshs_model_hash": tensors,
        "sshs_legacy_hash": hash_legacy(path, header),
        "modelspec.hash_sha256": f"0x{tensors}",
    }
    with path.open("rb+") as file:
        text = file.read(header.start)
        for key in HASHES.keys() & header.metadata.keys():
            # No value can hold this: quotes in one are escaped.
            marker = f'"{key}":"'.encode()
            place = text.index(marker) + len(marker)
            assert text[place : place + len(values[key])] == HASHES[key].encode(), key
            file.seek(place)
            file.write(values[key].encode())


def _end(name: str, entry: Mapping[str, Any]) -> int:
    """Where the bytes of a tensor end.

    Raises:
        ValueError: its entry says what can't be.
    """
    (first, last), shape = entry["data_offsets"], entry["shape"]
    is_text = isinstance(entry["dtype"], str)
    if not (is_text and all(type(n) is int and n >= 0 for n in (first, last - first, *shape))):
        raise ValueError(f"tensor {name!r} has no proper dtype, shape and place")
    size = _SIZES.get(entry["dtype"])
    if size is not None and prod(shape) * size != last - first:
        raise ValueError(f"tensor {name!r} has {last - first} bytes for a shape of {shape}")
    return last


def _serialize(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
    """The first bytes of a file with this header, as safetensors writes them."""
    given = {"__metadata__": metadata, **tensors} if metadata else dict(tensors)
    text = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _span(head: bytes, path: Path, offset: int, start: int, end: int) -> Iterator[bytes]:
    """Bytes `start` to `end` of `head` followed by what stands from `offset` on in a file."""
    yield head[start:end]
    with path.open("rb") as file:
        first = max(start - len(head), 0)
        file.seek(offset + first)
        yield file.read(max(end - len(head) - first, 0))
