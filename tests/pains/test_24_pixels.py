"""PAINS 24: what is trained on is what a person sees, and can be looked at before."""

from __future__ import annotations

import numpy as np
import photos
import pytest
import yaml
from PIL import Image

from main import main
from modules.contact_sheet import tint
from modules.dataset import ImageDataset
from modules.sheet_page import Card, break_lines, draw_page

RED, BLUE, GREEN = (220, 30, 30), (30, 30, 220), (30, 200, 30)


def halves(size, first, second):
    """A picture, the upper half of it in one colour and the lower in another."""
    image = Image.new("RGB", size, first)
    image.paste(second, (0, size[1] // 2, *size))
    return image


def save_turned(path, image, orientation):
    """Save as a camera does that was held so: pixels lie, EXIF says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[orientation]
    image.transpose(turned).save(path, exif=exif, quality=95)


@pytest.fixture
def data(tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    upright = halves((64, 96), RED, BLUE)
    save_turned(source / "portrait.jpg", upright, 6)
    save_turned(source / "overhead.jpg", upright, 3)
    clear = halves((96, 64), GREEN, GREEN).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 32, 96, 64))  # black, if one forgets what is transparent
    clear.save(source / "sticker.png")
    for name in ("portrait", "overhead", "sticker"):
        (source / f"{name}.txt").write_text(f"a {name}", encoding="utf-8")
    return photos.sort(source, tmp_path / "data", resolution=80)


def colours(sample):
    """The colours of the upper and the lower half, 0 to 255."""
    pixels = (sample.pixel_values + 1) * 127.5
    height = pixels.shape[1]
    upper, lower = pixels[:, : height // 2 - 4], pixels[:, height // 2 + 4 :]
    return [[round(float(c)) for c in half.mean(dim=(1, 2))] for half in (upper, lower)]


def test_images_are_upright_and_on_white(data):
    dataset = ImageDataset(str(data))
    seen = {sample.name: colours(sample) for sample in dataset}
    for name in ("portrait", "overhead"):
        assert np.allclose(seen[name], [RED, BLUE], atol=12)
    assert np.allclose(seen["sticker"], [GREEN, (255, 255, 255)], atol=6)
    sizes = dict(zip(dataset.names, [s.pixel_values.shape[1:] for s in dataset], strict=True))
    assert sizes["portrait"][0] > sizes["portrait"][1]
    assert sizes["sticker"][0] < sizes["sticker"][1]


def sheet(tmp_path, data, model_directory, **sections):
    config = photos.write_yaml(tmp_path / "run.yaml", data=data, model=model_directory, **sections)
    path = tmp_path / "sheet.png"
    assert main([config, "--check", "--contact-sheet", str(path)]) == 0
    return Image.open(path)


def area(image, colour, tolerance=14):
    """How many pixels of an image have a colour."""
    distance = np.abs(np.asarray(image.convert("RGB"), dtype=int) - colour).max(axis=-1)
    return int((distance <= tolerance).sum())


@pytest.mark.parametrize("kind", ["ImageDataset", "LatentDataset", "decoded"])
def test_the_sheet_shows_the_crops(tmp_path, data, model_directory, kind, capsys):
    from preprocess.latent import latent

    if kind == "decoded":
        latent(directory=data, model=str(model_directory))
        for file in (data / "images").iterdir():
            file.unlink()
    elif kind == "LatentDataset":
        latent(directory=data, model=str(model_directory))
    module = "ImageDataset" if kind == "ImageDataset" else "LatentDataset"
    drawn = sheet(tmp_path, data, model_directory, dataset={"module": f"modules.dataset.{module}"})
    assert f"contact sheet: {tmp_path / 'sheet.png'}" in capsys.readouterr().out
    if kind == "decoded":  # a VAE with random weights makes no colours
        assert area(drawn, RED) == 0
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 500
        return
    tall = 128 * 192  # pixels of a 64x96 image on its stage, where it is twice as large
    assert area(drawn, RED) == pytest.approx(2 * tall / 2, rel=0.15)
    assert area(drawn, BLUE) == pytest.approx(2 * tall / 2, rel=0.15)
    assert area(drawn, GREEN) == pytest.approx(tall / 2, rel=0.15)


def test_the_sheet_shows_augmented_pixels_as_they_are_drawn(tmp_path, data, model_directory):
    module = "modules.dataset.ImageDataset"
    plain = sheet(tmp_path, data, model_directory, dataset={"module": module})
    args = {"path": str(data), "color_jitter": 0.9}
    changed = sheet(tmp_path, data, model_directory, dataset={"module": module, "args": args})
    assert plain.size == changed.size
    assert plain.tobytes() != changed.tobytes()


def test_held_out_images_are_marked_and_masks_tinted(tmp_path, data, model_directory):
    module = {"module": "modules.dataset.ImageDataset"}
    plain = sheet(tmp_path, data, model_directory, dataset=module)
    badge = (180, 83, 9)
    for split in ("0.3", "0.5", "0.7"):
        config = tmp_path / "split.yaml"
        content = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
        content["validation"] = {"split": float(split)}
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        if main([str(config), "--check", "--contact-sheet", str(tmp_path / "split.png")]) == 0:
            break
    else:
        pytest.fail("no split holds out one of three images")
    assert area(Image.open(tmp_path / "split.png"), badge, 0) > area(plain, badge, 0) + 200
    folder = data / "mask"
    folder.mkdir()
    for name in ("portrait", "overhead"):
        np.savez(folder / f"{name}.npz", np.zeros((24, 16), dtype=np.float32))
    args = {"path": str(data), "mask": True}
    masked = sheet(tmp_path, data, model_directory, dataset={**module, "args": args})
    assert area(masked, RED) < area(plain, RED) / 100
    assert area(masked, GREEN) == area(plain, GREEN)


def test_a_tint_follows_the_weights():
    import torch

    picture = Image.new("RGB", (40, 20), GREEN)
    mask = torch.ones(1, 5, 10)
    assert tint(picture, mask).tobytes() == picture.tobytes()
    mask[:, :, 5:] = 0
    half = np.asarray(tint(picture, mask))
    assert (half[:, :16] == GREEN).all()
    assert (half[:, 24:] != GREEN).any(axis=-1).all()


def test_pages_hold_any_caption():
    card = Card(picture=Image.new("RGB", (9, 900)), name="n" * 300, facts="", caption="猫" * 500)
    page = draw_page([card] * 7, title="x", facts="y")
    assert page.width < 1600
    assert page.height < 1000


def test_lines_are_no_wider_than_their_room():
    from PIL import ImageFont

    font = ImageFont.load_default(size=14)
    for text in ("one two three four five six seven", "x" * 200, "猫" * 60, "", "a " * 90):
        lines = break_lines(text, font, 120, most=3)
        assert len(lines) <= 3
        assert all(font.getlength(line) <= 120 for line in lines)
    assert break_lines("one two three", font, 70, most=2) == ["one two", "three"]


def test_what_is_wrong_with_the_command_is_said(tmp_path, data, model_directory, capsys):
    module = {"module": "modules.dataset.ImageDataset"}
    config = photos.write_yaml(
        tmp_path / "a.yaml", data=data, model=model_directory, dataset=module
    )
    assert main([config, "--check", "--contact-sheet", str(tmp_path / "sheet.txt")]) == 2
    assert "sheet.txt: is no name of a picture" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([config, "--contact-sheet", "sheet.png"])
