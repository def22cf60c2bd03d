"""Hostile image files, made by code: what is in each, by the name that it goes under."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(kind: str = "PNG") -> bytes:
    """A whole picture of 50x40."""
    file = io.BytesIO()
    pixels = np.arange(50 * 40 * 3, dtype=np.uint32).reshape(40, 50, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever it has of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _chunk(pair: tuple[bytes, bytes]) -> bytes:
    kind, content = pair
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def bmp(width: int, height: int) -> bytes:
    """A BMP that claims a size and has no pixels."""
    start = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return start + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def bad_pictures(canary: Path) -> dict[str, bytes]:
    """Files that are no pictures; one would write `canary` if it were run."""
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({canary}) (w) file closefile\n"
    text = _chunk((b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (80 << 20))))  # a text of 80 MiB
    return {
        "bomb.png": png(60_000, 60_000),
        "greatest.png": png(2**31 - 1, 2**31 - 1),
        "text-bomb.png": png(8, 8)[:33] + text + png(8, 8, b"\0" * 25 * 8)[33:],
        "bomb.bmp": bmp(2**31 - 1, 2**31 - 1),
        "no-width.png": png(0, 5),
        "no-pixels.png": png(9_000, 9_000),
        "negative.bmp": bmp(-5, 5),
        "flat.bmp": bmp(5, 0),
        "flat.gif": b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\2\2\x44\1\0;",
        "flat.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 24, 0),
        "flat.qoi": b"qoif" + struct.pack(">IIBB", 0, 0, 3, 0),
        "flat.psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 0, 0, 8, 3) + bytes(12),
        "wide.ppm": b"P6 99999999999 9999999999 255\n",
        "cut.png": encoded()[:200],
        "cut.jpg": encoded("JPEG")[:300],
        "cut.webp": encoded("WEBP")[:60],
        "empty.png": b"",
        "text.jpg": b"this is no image",
        "zeros.png": bytes(1000),
        "noise.png": np.random.default_rng(0).bytes(5000),
        "postscript.png": postscript.encode(),
        "page.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/x"/></svg>',
    }


ODD_NAMES = {
    "a space.png": "a space",
    "emoji \N{GRINNING FACE}.png": "emoji \N{GRINNING FACE}",
    "\N{HIRAGANA LETTER A}.png": "\N{HIRAGANA LETTER A}",
    "new\nline.png": "new_line",
    "bell\a.png": "bell_",
    "two..png": "two_",
    "space .png": "space_",
    "C:x.png": "C_x",
    "a\\..\\..\\b.png": "a_.._.._b",
    "\\etc\\x.png": "_etc_x",
    "CON.png": "_CON",
    "nul.tar.png": "_nul.tar",
    "what?.png": "what_",
    "Case.png": "Case",
    "cASE.png": "cASE_png",
    f"{'long' * 62}.png": f"{'long' * 58}lon",
    "COM1/x.png": "_COM1/x",
    "... dots/x.png": None,  # hidden
}
"""Names of whole pictures, as Linux allows them, and the name that each gets in a dataset."""
