"""Hostile files of a dataset, made by code: what replaces which file of a whole one."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hostile.checkpoints import Touch, safetensors
from hostile.pictures import png

HUGE = 10**6
SECOND = "image001"


def npy(shape: tuple[int, ...], data: bytes = b"", dtype: Any = "<f4") -> bytes:
    """A .npy file with a header as it is given, which may claim more than there is."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def npz(content: bytes, name: str = "arr_0.npy") -> bytes:
    """A .npz file with one array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def pickled(canary: Path) -> bytes:
    """A .npy file of an object that would make `canary`."""
    file = io.BytesIO()
    np.save(file, np.array([Touch(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def garbled() -> bytes:
    """A .npz whose compressed bytes are broken."""
    content = bytearray(npz(npy((8, 8), np.random.default_rng(0).bytes(256))))
    content[60:90] = b"\xff" * 30
    return bytes(content)


def bad_files(canary: Path) -> dict[str, tuple[str, bytes]]:
    """By what is wrong: a file of the dataset, and what it is replaced by."""
    latents, mask, pfg = f"latents/{SECOND}.npy", f"mask/{SECOND}.npz", f"pfg/{SECOND}.npz"
    caption, control = f"captions/{SECOND}.caption", f"control/{SECOND}.png"
    packed = "latents_packed/32x32-1.safetensors"
    names = {"names": '[["a"]]'}
    row = {"latents": {"dtype": "F32", "shape": [1, 4, 8, 8], "data_offsets": [0, 1024]}}
    buckets = "buckets.json"
    return {
        "latents claim terabytes": (latents, npy((4, HUGE, HUGE))),
        "latents claim more than there is": (latents, npy((4, 8, 8), bytes(100))),
        "latents are a pickle": (latents, pickled(canary)),
        "latents have another type": (
            latents,
            npy((4, 8, 8), bytes(2048), [("a", "<f4"), ("b", "<f4")]),
        ),
        "latents are text": (latents, npy((4, 8, 8), bytes(1024), "<U1")),
        "latents are empty": (latents, b""),
        "latents have a deep header": (latents, b"\x93NUMPY\1\0\xff\xff" + b"(" * 65_535),
        "a mask claims terabytes": (mask, npz(npy((HUGE, HUGE)))),
        "a mask is a pickle": (mask, npz(pickled(canary))),
        "a mask is garbled": (mask, garbled()),
        "a mask is text": (mask, b"no mask"),
        "a mask is not a number": (mask, npz(npy((8, 8), b"\xff" * 256))),
        "features are a pickle": (pfg, npz(pickled(canary), "controll.npy")),
        "features are a bomb": (pfg, npz(npy((4 << 20,), bytes(16 << 20)), "controll.npy")),
        "features are cut": (pfg, npz(npy((12,), bytes(48)))[:100]),
        "a guide is a bomb": (control, png(60_000, 60_000)),
        "a guide is text": (control, b"no image"),
        "a caption is Latin-1": (caption, "\xc4rger".encode("latin-1")),
        "a caption is UTF-16": (caption, "a cat".encode("utf-16")),
        "a caption is Shift-JIS": (caption, "\u732b\u304c\u597d\u304d".encode("shift-jis")),
        "buckets lead outside": (buckets, json.dumps({"(32, 32)": ["../x", "/x"]}).encode()),
        "buckets are deep": (buckets, b"[" * 100_000),
        "buckets are binary": (buckets, b"\xff\xfe\0"),
        "buckets are no number": (buckets, b'{"(32, 32)": NaN}'),
        "buckets have half a character": (buckets, b'{"(32, 32)": ["image000", "\\udcff"]}'),
        "buckets are huge": (buckets, f'{{"({"9" * 30}, 32)": ["image000"]}}'.encode()),
        "packed latents claim a terabyte": (packed, safetensors({}, length=2**40)),
        "packed latents have odd names": (
            packed,
            safetensors({"__metadata__": names, **row}, bytes(1024)),
        ),
    }


HARMLESS = {
    "an array leads outside": (f"mask/{SECOND}.npz", npz(npy((8, 8), bytes(256)), "../../x.npy")),
    "a caption has odd characters": (f"captions/{SECOND}.caption", b"a\0b\x1b[31m\r\n\t"),
    "sizes are huge": (
        "images.jsonl",
        b'{"name": "image000", "original_size": [99999999999999999, 5], "crop_top_left": [0, 0]}',
    ),
    "lines are of others": ("captions.jsonl", b'{"name": "../x", "captions": ["x"]}\n'),
}
"""Odd files that a run has no reason to stop for."""
