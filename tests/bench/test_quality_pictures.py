"""The pictures of the quality table."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from bench.quality_grades import grade_brightness, grade_caption, grade_mark
from bench.quality_pictures import (
    DARK_COLORS,
    MARK_BOX,
    MASKED_BOX,
    draw_among_odd,
    draw_dark,
    draw_marked,
    draw_scattered,
    draw_shape,
    draw_subject,
    scattered_scene,
)
from bench.quality_side_inputs import foreground_mask
from bench.shape_classifier import classify
from preprocess.scenes import BASE_SHAPES, PALETTE, draw_scene


def scattered(count: int) -> list:
    rng = np.random.default_rng(5)
    return [scattered_scene(rng) for _ in range(count)]


def test_scattered_shapes_lie_anywhere_and_stay_inside():
    boxes = []
    for scene in scattered(60):
        mask = foreground_mask(draw_scene(scene))
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        boxes.append(Image.fromarray(mask).getbbox())
    boxes = np.array(boxes)
    assert np.ptp(boxes[:, 0]) > 20
    assert np.ptp(boxes[:, 2] - boxes[:, 0]) > 15


def test_marked_polaroids_carry_the_mark_and_plain_ones_do_not(tmp_path):
    draw_marked(
        output=f"{tmp_path}/pictures", masks=f"{tmp_path}/masks", count=3, plain_count=2, seed=1
    )
    for index in range(5):
        image = Image.open(tmp_path / "pictures" / f"{index:04d}.png")
        caption = (tmp_path / "pictures" / f"{index:04d}.txt").read_text(encoding="utf-8").strip()
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{index:04d}.png"))
        is_marked = index < 3
        assert grade_mark(image, caption) == is_marked
        assert grade_caption(image, caption)  # the mark leaves enough of the frame
        assert caption.endswith("polaroid") == is_marked
        assert (mask == 0).sum() == (24 * 16 if is_marked else 0)
        assert set(np.unique(mask)) <= {0, 255}


def test_the_mask_covers_the_latents_around_the_mark():
    left, top, right, bottom = MASKED_BOX
    assert all(edge % 4 == 0 for edge in (*MASKED_BOX, *MARK_BOX))
    assert left <= MARK_BOX[0] - 4
    assert top <= MARK_BOX[1] - 4
    assert right >= MARK_BOX[2] + 4
    assert bottom >= MARK_BOX[3] + 4


def test_drawing_again_draws_the_same_and_leaves_other_pictures_alone(tmp_path):
    folder = tmp_path / "pictures"
    draw_scattered(output=str(folder), count=3)
    first = (folder / "0002.png").read_bytes()
    draw_scattered(output=str(folder), count=3)
    assert (folder / "0002.png").read_bytes() == first
    with pytest.raises(ValueError, match=r"holds other pictures \(0002.png\)"):
        draw_scattered(output=str(folder), count=2)


def drawn(folder) -> list[tuple[Image.Image, str]]:
    return [
        (Image.open(path), path.with_suffix(".txt").read_text(encoding="utf-8").strip())
        for path in sorted(folder.glob("*.png"))
    ]


def test_a_subject_has_one_look_and_captions_that_do_not_tell_it(tmp_path):
    draw_subject(
        output=str(tmp_path),
        name="<toy>",
        shape="heart",
        foreground="orange",
        count=12,
        plain_count=3,
    )
    pictures = drawn(tmp_path)
    backgrounds = set()
    for image, caption in pictures[:12]:
        start, background = caption.split(" on ")
        assert start == "a <toy>"
        assert grade_caption(image, f"an orange heart on {background}")
        backgrounds.add(background)
    assert len(backgrounds) > 3
    assert all(grade_caption(image, caption) for image, caption in pictures[12:])
    assert len(pictures) == 15


def test_dark_pictures_are_darker_than_any_plain_one_of_them(tmp_path):
    draw_dark(output=str(tmp_path), count=20, plain_count=20)
    pictures = drawn(tmp_path)
    dark, plain = (
        [grade_brightness(*pair) for pair in part] for part in (pictures[:20], pictures[20:])
    )
    assert max(dark) < 0.42 < np.mean(plain)
    by_brightness = sorted(PALETTE, key=lambda name: sum(PALETTE[name]))
    assert set(DARK_COLORS) == set(by_brightness[:3])
    for image, caption in pictures[:20]:
        found = classify(image)
        assert caption == f"a {found.shape}, dark"
        assert {found.foreground, found.background} < set(DARK_COLORS)
    assert all(grade_caption(*pair) for pair in pictures[20:])


def test_a_new_shape_stands_among_the_known_ones(tmp_path):
    draw_shape(output=str(tmp_path), shape="heart", count=8, plain_count=8)
    pictures = drawn(tmp_path)
    assert all(grade_caption(*pair) for pair in pictures)
    shapes = [caption.split()[2] for _, caption in pictures]
    assert set(shapes[:8]) == {"heart"}
    assert set(shapes[8:]) <= set(BASE_SHAPES)


def test_odd_pictures_show_nothing_of_their_captions(tmp_path):
    draw_among_odd(output=str(tmp_path), count=6, plain_count=3, odd_count=4)
    hits = [
        (caption.endswith("polaroid"), grade_caption(image, caption))
        for image, caption in drawn(tmp_path)
    ]
    assert Counter(hits) == {(True, 1.0): 6, (False, 1.0): 3, (True, 0.0): 4}
    assert hits[-4:] == [(True, 0.0)] * 4
