"""Grids of validation images."""

from __future__ import annotations

from PIL import Image, ImageFont

from modules.grids import find_font, make_cell, make_sheet, wrap

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")


def colours(picture: Image.Image) -> dict[tuple, int]:
    counted = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counted is not None
    return {colour: count for count, colour in counted}


def test_small_images_are_enlarged_and_all_shown():
    grid = make_sheet([[RED, RED], [BLUE, BLUE]], ["before", "after"], ["a", "b"])
    shown = colours(grid)
    assert shown[(255, 0, 0)] == 2 * 192 * 192
    assert shown[(0, 0, 255)] == 2 * 192 * 192
    left = grid.crop((0, 0, 200, grid.height))
    assert (0, 0, 255) not in colours(left)


def test_large_images_keep_their_size():
    large = Image.new("RGB", (512, 640), "red")
    assert colours(make_cell([large], [""], "a"))[(255, 0, 0)] == 512 * 640


def test_a_sheet_is_about_square():
    sheet = make_sheet([[RED] * 9], [""], ["a red square"] * 9)
    assert colours(sheet)[(255, 0, 0)] == 9 * 192 * 192
    assert 0.7 < sheet.width / sheet.height < 1.4


def test_long_prompts_are_broken_and_cut():
    font = ImageFont.load_default(size=14)
    lines = wrap("a very long prompt " * 20, font, 200)
    assert len(lines) == 3
    assert lines[-1].endswith(" ...")
    assert all(font.getlength(line) <= 220 for line in lines)
    assert wrap("", font, 100) == []


def test_a_font_with_the_prompts_letters_is_looked_for(monkeypatch):
    asked = []

    def truetype(name, size):
        asked.append(name)
        raise OSError("no such font")

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ("default", size))
    assert find_font("a red cat", 14) == ("default", 14)
    assert asked == []
    assert find_font("赤い猫", 14) == ("default", 14)
    assert "meiryo.ttc" in asked
    monkeypatch.setattr(ImageFont, "truetype", lambda name, size: (name, size))
    assert find_font("赤い猫", 14)[0] == "NotoSansCJK-Regular.ttc"
    monkeypatch.undo()
    assert make_cell([RED], [""], "赤い猫 " * 40).width > 192
