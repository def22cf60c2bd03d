"""How the quality table grades pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.quality_grades import (
    Goal,
    grade_brightness,
    grade_colors,
    grade_mark,
    grade_overlap,
    grade_scene,
    grade_shape,
)
from bench.quality_pictures import SIZE, add_mark
from preprocess.scenes import PALETTE, draw_scene, sample_scene

SCENE = sample_scene(np.random.default_rng(0), size=SIZE)


def test_grades_of_a_drawn_scene():
    image = draw_scene(SCENE)
    names = [name for name in PALETTE if name not in (SCENE.foreground, SCENE.background)]
    recolored = replace(SCENE, foreground=names[0])
    reshaped = replace(SCENE, shape="circle" if SCENE.shape != "circle" else "cross")
    both = (grade_scene, grade_shape, grade_colors)
    assert [grade(image, SCENE) for grade in both] == [1, 1, 1]
    assert [grade(image, recolored) for grade in both] == [0, 1, 0]
    assert [grade(image, reshaped) for grade in both] == [0, 0, 1]
    assert grade_scene(draw_scene(replace(SCENE, style="polaroid")), SCENE) == 0


def test_overlap_is_the_intersection_over_the_union():
    scene = replace(SCENE, shape="square", center=(32.0, 32.0), radius=20.0)  # side 34
    half = replace(scene, center=(32.0 + 8.5, 32.0))
    assert grade_overlap(draw_scene(scene), scene) == 1.0
    assert grade_overlap(draw_scene(half), scene) == pytest.approx(
        (34 - 8.5) / (34 + 8.5), abs=0.03
    )
    assert grade_overlap(Image.new("RGB", SIZE, PALETTE["red"]), scene) == 0.0


def test_a_mark_of_another_color_or_place_is_none():
    polaroid = draw_scene(replace(SCENE, style="polaroid"))
    assert grade_mark(add_mark(polaroid), "") == 1
    assert grade_mark(polaroid, "") == 0
    green = np.array(add_mark(polaroid))
    green[(green == PALETTE["blue"]).all(axis=-1)] = PALETTE["green"]
    assert grade_mark(Image.fromarray(green), "") == 0
    assert grade_mark(add_mark(polaroid).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "") == 0


def test_goals():
    assert Goal(before_under=0.1, after_over=0.7).is_reached(0.0, 0.71)
    assert not Goal(before_under=0.1, after_over=0.7).is_reached(0.0, 0.7)
    assert not Goal(before_under=0.1, after_over=0.7).is_reached(0.1, 0.9)
    assert not Goal(after_under=0.05).is_reached(0.0, 0.05)
    assert Goal(loses_under=0.1).is_reached(0.9, 0.85)
    assert not Goal(loses_under=0.1).is_reached(0.9, 0.75)
    assert not Goal(loses_under=0.1).is_reached(1.0, 0.9)


def test_brightness_is_the_mean_of_the_pixels():
    half = Image.new("RGB", SIZE)
    half.paste((255, 255, 255), (0, 0, SIZE[0], SIZE[1] // 2))
    assert grade_brightness(half, "") == 0.5
    assert grade_brightness(Image.new("RGB", SIZE, (51, 0, 0)), "") == pytest.approx(0.2 / 3)
