import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from bench.shape_classifier import classify, hit, read_caption
from preprocess.scenes import (
    PALETTE,
    SHAPES,
    SIZES,
    draw_scene,
    sample_scene,
    write_caption,
)


def draw(shape="circle", foreground="red", background="blue", style=None, size=(64, 64), seed=0):
    scene = sample_scene(np.random.default_rng(seed), shapes=[shape], style=style, size=size)
    scene = dataclasses.replace(
        scene, foreground_rgb=PALETTE[foreground], background_rgb=PALETTE[background]
    )
    return draw_scene(scene)


@pytest.mark.parametrize("style", [None, "polaroid"])
def test_drawn_pictures_are_hits(style):
    rng = np.random.default_rng(7)
    scenes = [sample_scene(rng, shapes=SHAPES, style=style) for _ in range(300)]
    hits = [hit(draw_scene(scene), scene.caption) for scene in scenes]
    assert np.mean(hits) >= 0.995


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", [None, "polaroid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_right_caption_is_a_hit(shape, style, size):
    image = draw(shape, "yellow", "purple", style, size)
    other_style = None if style else "polaroid"
    assert hit(image, write_caption(shape, "yellow", "purple", style))
    assert not hit(image, write_caption(shape, "yellow", "purple", other_style))
    assert not hit(image, write_caption(shape, "orange", "purple", style))
    assert not hit(image, write_caption(shape, "yellow", "blue", style))
    assert not hit(image, write_caption(shape, "purple", "yellow", style))
    for other in set(SHAPES) - {shape}:
        assert not hit(image, write_caption(other, "yellow", "purple", style))


def test_smooth_noise_and_blur_keep_a_hit():
    image = draw("cross").filter(ImageFilter.GaussianBlur(1))
    noise = np.random.default_rng(0).normal(0, 6, size=(64, 64, 3))
    pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
    assert hit(Image.fromarray(pixels), "a red cross on a blue background")


def blank(color=PALETTE["blue"]):
    return Image.new("RGB", (64, 64), color)


def noise():
    pixels = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def half():
    image = draw("circle")
    image.paste(PALETTE["blue"], (32, 0, 64, 64))
    return image


def two_circles():
    image = blank()
    pen = ImageDraw.Draw(image)
    for x in (4, 34):
        pen.ellipse((x, 20, x + 26, 46), fill=PALETTE["red"])
    return image


def circle_and_blob():
    image = draw("circle")
    ImageDraw.Draw(image).rectangle((2, 2, 14, 14), fill=PALETTE["red"])
    return image


def foreign_patch():
    image = draw("circle")
    ImageDraw.Draw(image).rectangle((24, 24, 40, 40), fill=PALETTE["green"])
    return image


def flat_ellipse():
    image = blank()
    ImageDraw.Draw(image).ellipse((10, 24, 54, 40), fill=PALETTE["red"])
    return image


@pytest.mark.parametrize(
    "make", [blank, noise, half, two_circles, circle_and_blob, foreign_patch, flat_ellipse]
)
def test_wrong_pictures_are_no_hits(make):
    image = make()
    assert not any(
        hit(image, write_caption(shape, "red", "blue", style))
        for shape in SHAPES
        for style in (None, "polaroid")
    )


def test_half_a_frame_is_no_polaroid():
    image = draw("circle", style="polaroid")
    image.paste(PALETTE["blue"], (0, 32, 7, 64))
    image.paste(PALETTE["blue"], (57, 32, 64, 64))
    found = classify(image)
    assert 0.5 < found.frame_share < 0.85
    assert not found.is_framed


def test_frame_of_another_color_is_no_polaroid():
    image = draw("circle", style="polaroid")
    pixels = np.array(image)
    pixels[(pixels > 240).all(axis=-1)] = PALETTE["pink"]
    assert not hit(Image.fromarray(pixels), "a red circle on a blue background, polaroid")


def test_caption_may_have_words_around():
    caption = read_caption("a photo of an orange star on a cyan background, polaroid style")
    assert (caption.shape, caption.foreground, caption.background) == ("star", "orange", "cyan")
    assert caption.is_polaroid


@pytest.mark.parametrize("caption", ["", "a cat", "a red hexagon on a blue background"])
def test_foreign_caption_is_named(caption):
    with pytest.raises(ValueError, match="caption"):
        read_caption(caption)
