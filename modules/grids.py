"""Validation images put together to one picture with their prompts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_SMALLEST = 192  # pixels; smaller images are enlarged, so that they can be seen
_WIDE_FONTS = (  # with Japanese: Linux, Windows, macOS
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "ipag.ttf",
    "YuGothM.ttc",
    "meiryo.ttc",
    "msgothic.ttc",
    "ヒラギノ角ゴシック W3.ttc",
    "Arial Unicode.ttf",
)


def make_sheet(
    columns: Sequence[Sequence[Image.Image]], titles: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """One cell for each label (a prompt), as many in a row as make the sheet about square.

    A cell shows one image of each column beside each other, `columns[c][n]`, the columns' titles
    above them and the label below. Images of different cells may differ in size: rows are as high
    and columns as wide as what stands in them.
    """
    cells = [
        make_cell([column[n] for column in columns], titles, label)
        for n, label in enumerate(labels)
    ]
    per_row = math.isqrt(len(cells) - 1) + 1
    rows = [cells[start : start + per_row] for start in range(0, len(cells), per_row)]
    heights = [max(cell.height for cell in row) for row in rows]
    widths = [max(cell.width for cell in cells[column::per_row]) for column in range(per_row)]
    sheet = Image.new("RGB", (sum(widths), sum(heights)), "white")
    for n, cell in enumerate(cells):
        row, column = divmod(n, per_row)
        sheet.paste(cell, (sum(widths[:column]), sum(heights[:row])))
    return sheet


def make_cell(images: Sequence[Image.Image], titles: Sequence[str], label: str) -> Image.Image:
    """Images side by side under their titles, over one label."""
    factor = max(1, -(-_SMALLEST // min(images[0].size)))
    width, height = images[0].width * factor, images[0].height * factor
    font_size = max(14, min(width, height) // 16)
    font = find_font(label, font_size)
    line = int(font_size * 1.3)
    above = line if any(titles) else 0
    lines = wrap(label, font, (width + _MARGIN) * len(images) - _MARGIN)
    total_width = len(images) * (width + _MARGIN) + _MARGIN
    cell = Image.new(
        "RGB", (total_width, above + height + len(lines) * line + 2 * _MARGIN), "white"
    )
    draw = ImageDraw.Draw(cell)
    for n, (image, title) in enumerate(zip(images, titles, strict=True)):
        left = _MARGIN + n * (width + _MARGIN)
        draw.text((left + width // 2, _MARGIN), title, fill="black", font=font, anchor="mt")
        picture = image.resize((width, height), Image.Resampling.BICUBIC)
        cell.paste(picture, (left, _MARGIN + above))
    for n, text in enumerate(lines):
        top = _MARGIN + above + height + 2 + n * line
        draw.text((_MARGIN, top), text, fill="#444444", font=font)
    return cell


def find_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or for what it has no letters for one that the system brings along."""
    if not text.isascii():
        for name in _WIDE_FONTS:
            with contextlib.suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into at most three lines of `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines if len(lines) <= 3 else [*lines[:2], lines[2] + " ..."]
