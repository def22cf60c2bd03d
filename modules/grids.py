"""Validation images put together to one picture with their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_SMALLEST = 192  # pixels; smaller images are enlarged, so that they can be seen


def make_grid(
    columns: Sequence[Sequence[Image.Image]], titles: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """One row for each label (a prompt), one column for each title; `columns[c][r]`."""
    first = columns[0][0]
    factor = max(1, -(-_SMALLEST // min(first.size)))
    width, height = first.width * factor, first.height * factor
    font_size = max(14, min(width, height) // 16)
    font = ImageFont.load_default(size=font_size)
    line = int(font_size * 1.3)
    label_lines = [wrap(label, font, width * len(columns)) for label in labels]
    title_height = line + _MARGIN if any(titles) else 0
    rows = [height + line * len(lines) + _MARGIN for lines in label_lines]
    total_width = len(columns) * (width + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (total_width, title_height + sum(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for c, title in enumerate(titles):
        centre = _MARGIN + c * (width + _MARGIN) + width // 2
        draw.text((centre, _MARGIN), title, fill="black", font=font, anchor="mt")
    top = title_height + _MARGIN
    for r, lines in enumerate(label_lines):
        for c, column in enumerate(columns):
            picture = column[r].resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (_MARGIN + c * (width + _MARGIN), top))
        for n, text in enumerate(lines):
            draw.text((_MARGIN, top + height + n * line), text, fill="#444444", font=font)
        top += rows[r]
    return canvas


def make_sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Images side by side, as many in a row as make the sheet about square, a label under each."""
    per_row = min(len(images), max(1, round(len(images) ** 0.5 + 0.49)))
    cells = [make_grid([[i]], [""], [label]) for i, label in zip(images, labels, strict=True)]
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    count = -(-len(cells) // per_row)
    sheet = Image.new("RGB", (width * per_row, height * count), "white")
    for n, cell in enumerate(cells):
        sheet.paste(cell, (n % per_row * width, n // per_row * height))
    return sheet


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
