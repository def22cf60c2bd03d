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


def test_cells_of_different_sizes_leave_no_holes():
    sizes = [(256, 256), (512, 256), (256, 640), (256, 256)]
    colors = ["red", "blue", "lime", "black"]
    images = [Image.new("RGB", *each) for each in zip(sizes, colors, strict=True)]
    sheet = make_sheet([images], [""], ["a"] * 4)
    assert sheet.width < 256 + 512 + 6 * 8
    assert sheet.height < 256 + 640 + 150
    shown = colours(sheet)
    assert [shown[(255, 0, 0)], shown[(0, 255, 0)]] == [256 * 256, 256 * 640]
    assert shown[(0, 0, 255)] == 512 * 256
    boxes = {}
    for color, rgb in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("lime", (0, 255, 0))):
        mask = [pixel == rgb for pixel in sheet.getdata()]
        first = mask.index(True)
        boxes[color] = (first % sheet.width, first // sheet.width)
    assert boxes["blue"][1] == boxes["red"][1]
    assert boxes["lime"][0] == boxes["red"][0]


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
