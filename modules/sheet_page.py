"""A page of a contact sheet: cards in rows, each an image over its facts, caption and name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from modules.grids import find_font

PER_ROW = 5
PER_PAGE = 20

_PICTURE = 248  # pixels of the square that an image is fitted into
_GAP = 20
_PADDING = 10
_LINES = 4  # of a caption
_PAPER, _CARD, _STAGE = "#f1f1ee", "#ffffff", "#e4e4e0"
_INK, _SOFT, _WARM = "#1c1c1a", "#77776f", "#b45309"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image of a contact sheet."""

    picture: Image.Image
    name: str
    caption: str
    facts: str
    has_caption: bool = True
    """Or `caption` says why there is none."""
    is_masked: bool = False
    warning: str = ""
    is_held_out: bool = False


def draw_page(cards: Sequence[Card], *, title: str, facts: str) -> Image.Image:
    """Draw cards in rows of `PER_ROW` under a title; a row is as high as its longest caption."""
    drawn = [_draw_card(card) for card in cards]
    rows = [drawn[start : start + PER_ROW] for start in range(0, len(drawn), PER_ROW)]
    heights = [max(card.height for card in row) for row in rows]
    header, columns = 64, min(PER_ROW, max(2, len(cards)))
    side = _PICTURE + 2 * _PADDING
    width = columns * side + (columns + 1) * _GAP
    page = Image.new("RGB", (width, header + sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    draw = ImageDraw.Draw(page)
    for text, size, top, colour in ((title, 20, 18, _INK), (facts, 14, 46, _SOFT)):
        font = find_font(text, size)
        line = break_lines(text, font, width - 2 * _GAP, most=1)[0]
        draw.text((_GAP, top), line, fill=colour, font=font)
    top = header + _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            left = _GAP + column * (side + _GAP)
            draw.rounded_rectangle((left, top, left + side, top + height), 8, fill=_CARD)
            page.paste(card, (left, top), _rounded(card.size))
        top += height + _GAP
    return page


def break_lines(text: str, font: Font, width: int, *, most: int) -> list[str]:
    """Break a text into lines of `width` pixels at most, between words where there are such.

    What doesn't fit into `most` lines is left out, with three dots in its place.
    """
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < most:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count]) > width:
            count -= max(1, count // 16)
        while count < len(rest) and font.getlength(rest[: count + 1]) <= width:
            count += 1
        space = rest.rfind(" ", 0, count + 1)
        if count < len(rest) and space > count // 2:
            count = space
        lines.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}..."
    return lines or [""]


def _draw_card(card: Card) -> Image.Image:
    """Draw an image on its stage with what is said of it."""
    inner, side = _PICTURE, _PICTURE + 2 * _PADDING
    caption_font = find_font(card.caption, 14)
    small, name_font = find_font(card.facts, 12), find_font(card.name, 12)
    lines = break_lines(card.caption, caption_font, inner, most=_LINES)
    height = _PADDING + inner + 8 + 18 + 19 * len(lines) + 4 + 16 + _PADDING
    image = Image.new("RGB", (side, height), _CARD)
    draw = ImageDraw.Draw(image)
    draw.rectangle((_PADDING, _PADDING, side - _PADDING - 1, _PADDING + inner - 1), fill=_STAGE)
    picture = _fit(card.picture)
    corner = (side - picture.width) // 2, _PADDING + (inner - picture.height) // 2
    image.paste(picture, corner)
    if card.is_held_out:
        _draw_badge(draw, "held out", corner)
    top = _PADDING + inner + 8
    draw.text((_PADDING, top), card.facts, fill=_SOFT, font=small)
    draw.text((side - _PADDING, top), card.warning, fill=_WARM, font=small, anchor="ra")
    top += 18
    colour = _INK if card.has_caption else _SOFT
    for line in lines:
        draw.text((_PADDING, top), line, fill=colour, font=caption_font)
        top += 19
    name = break_lines(card.name, name_font, inner, most=1)[0]
    draw.text((_PADDING, top + 4), name, fill=_SOFT, font=name_font)
    return image


def _fit(picture: Image.Image) -> Image.Image:
    """Scale an image into its square; small ones by whole numbers, so that pixels stay pixels."""
    scale = _PICTURE / max(picture.size)
    if scale >= 2:
        scale = int(scale)
        resample = Image.Resampling.NEAREST
    else:
        resample = Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, resample)


def _draw_badge(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int]) -> None:
    font = find_font(text, 12)
    left, top = corner[0] + 6, corner[1] + 6
    box = draw.textbbox((left + 7, top + 4), text, font=font)
    draw.rounded_rectangle((left, top, box[2] + 7, box[3] + 5), 5, fill=_WARM)
    draw.text((left + 7, top + 4), text, fill="white", font=font)


def _rounded(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 8, fill=255)
    return mask
