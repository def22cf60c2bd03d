"""What is drawn for images: how often, how far, and which settings are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.augmentation import Augmentation
from modules.transform import Transform


def draws(augmentation, count=4000):
    return [augmentation.draw(np.random.default_rng([7, n])) for n in range(count)]


def test_without_settings_nothing_is_done():
    pictures = torch.rand(3, 8, 8) * 2 - 1
    assert Augmentation().changes() == []
    for drawn in draws(Augmentation(), 20):
        assert not drawn.is_cut
        assert not drawn.is_flipped
        assert not drawn.color.is_any
        assert torch.equal(drawn.picture(pictures), pictures)


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_so_many_are_mirrored(flip):
    share = np.mean([drawn.is_flipped for drawn in draws(Augmentation(flip=flip))])
    assert share == pytest.approx(flip, abs=4 * np.sqrt(flip * (1 - flip) / 4000))


def test_all_of_the_range_is_drawn_and_no_more():
    drawn = draws(Augmentation(crop_jitter=0.1, rotation=5, color_jitter=[0.2, 0.3, 0.4, 0.05]))
    columns = {
        (0.9, 1.0): [each.zoom for each in drawn],
        (-1.0, 1.0): [each.shift[0] for each in drawn],
        (-1.0, 1.0, "down"): [each.shift[1] for each in drawn],
        (-5.0, 5.0): [each.angle for each in drawn],
        (0.8, 1.2): [each.color.brightness for each in drawn],
        (0.7, 1.3): [each.color.contrast for each in drawn],
        (0.6, 1.4): [each.color.saturation for each in drawn],
        (-0.05, 0.05): [each.color.hue for each in drawn],
    }
    for (least, most, *_), values in columns.items():
        assert least <= min(values) < least + 0.01 * (most - least)
        assert most - 0.01 * (most - least) < max(values) <= most
        middle, error = (least + most) / 2, (most - least) / np.sqrt(12 * 4000)
        assert np.mean(values) == pytest.approx(middle, abs=4 * error)
    table = np.corrcoef(list(columns.values()))
    assert np.abs(table - np.eye(len(table))).max() < 0.07
    assert len({each.color.order for each in drawn}) == 24


def test_one_number_leaves_the_hue():
    colors = [drawn.color for drawn in draws(Augmentation(color_jitter=0.2), 50)]
    assert {color.hue for color in colors} == {0.0}
    assert len({color.saturation for color in colors}) == 50


def test_mean_colour_is_shifted_no_further_than_it_says():
    image = torch.full((3, 4, 4), 0.5)
    image[0] += 0.1
    for drawn in draws(Augmentation(color_jitter=0.1), 300):
        shift = (drawn.color(image) - image).mean(dim=(1, 2))
        # Brightness moves by 0.1 of the value; saturation by 0.1 of what is not grey.
        assert shift.abs().max() <= 0.1 * 0.6 + 1.1 * 0.1 * 0.1 + 1e-6


def test_a_setting_leaves_the_draws_of_others():
    few = draws(Augmentation(flip=0.5, rotation=5), 30)
    more = draws(Augmentation(flip=0.5, rotation=5, crop_jitter=0.1, color_jitter=0.1), 30)
    assert [(d.is_flipped, d.angle) for d in few] == [(d.is_flipped, d.angle) for d in more]


def test_wrong_settings_are_listed():
    with pytest.raises(ValueError, match=r"flip: 1\.5 is no probability") as caught:
        Augmentation(flip=1.5, crop_jitter=0.9, rotation=90, color_jitter=[0.1, 0.1, 0.1, 0.6])
    said = str(caught.value)
    assert "crop_jitter: 0.9 is not within 0 and 0.5; 0.1 cuts" in said
    assert "rotation: 90 is not within 0 and 45 degrees; 5 is usual" in said
    assert "color_jitter: hue of 0.6 is not within 0 and 0.5" in said
    for jitter, message in (
        ([0.1, 0.2], "has 2 numbers; give one, or four: brightness, contrast, saturation, hue"),
        (-0.1, "brightness of -0.1 is not within 0 and 1"),
    ):
        with pytest.raises(ValueError, match=f"color_jitter: {message}"):
            Augmentation(color_jitter=jitter)
    for flip in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="is no probability"):
            Augmentation(flip=flip)


def test_the_settings_that_change_something_are_named():
    assert Augmentation(flip=0.5, color_jitter=[0, 0, 0, 0]).changes() == ["flip"]
    assert Augmentation(color_jitter=[0, 0, 0, 0.1]).changes() == ["color_jitter"]
    assert isinstance(Augmentation().draw(np.random.default_rng(0)), Transform)
