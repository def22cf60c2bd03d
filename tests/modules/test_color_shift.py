"""Colours against closed forms and another implementation of HSV."""

from __future__ import annotations

import colorsys

import pytest
import torch

from modules.color_shift import ColorShift, turn_hue

IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
GREY = (0.2989 * IMAGE[0] + 0.587 * IMAGE[1] + 0.114 * IMAGE[2]).expand(3, 8, 8)


def test_nothing_is_done_at_first():
    assert not ColorShift().is_any
    assert ColorShift()(IMAGE) is IMAGE


def test_closed_forms():
    shifts = {
        ColorShift(brightness=0.5): IMAGE / 2,
        ColorShift(brightness=1.5): (IMAGE * 1.5).clamp(max=1),
        ColorShift(contrast=0.5): IMAGE / 2 + GREY.mean() / 2,
        ColorShift(contrast=0.0): GREY.mean().expand(3, 8, 8),
        ColorShift(saturation=0.0): GREY,
        ColorShift(saturation=1.5): (IMAGE * 1.5 - GREY / 2).clamp(0, 1),
    }
    for shift, expected in shifts.items():
        assert shift.is_any
        torch.testing.assert_close(shift(IMAGE), expected)


@pytest.mark.parametrize("turn", [-0.5, -0.3, -0.01, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_as_the_standard_library_has_it(turn):
    image = IMAGE.clone()
    image[:, 0, 0] = 0.4  # grey has no hue
    image[:, 0, 1] = 0.0
    image[:, 0, 2] = torch.tensor([0.7, 0.7, 0.2])  # two channels are the largest
    turned = turn_hue(image, turn)
    for row in range(8):
        for column in range(8):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            torch.testing.assert_close(
                turned[:, row, column], torch.tensor(expected), atol=1e-5, rtol=0
            )


def test_a_third_of_the_circle_moves_the_channels_on():
    torch.testing.assert_close(turn_hue(IMAGE, 1 / 3), IMAGE.roll(1, dims=0), atol=1e-5, rtol=0)


def test_order_is_kept():
    settings = {"brightness": 1.4, "contrast": 0.6}
    first, second = (ColorShift(**settings, order=o)(IMAGE) for o in ((0, 1, 2, 3), (1, 0, 2, 3)))
    brighter = (IMAGE * 1.4).clamp(max=1)
    weights = torch.tensor([0.2989, 0.587, 0.114])
    mean = torch.einsum("c,chw->hw", weights, brighter).mean()
    torch.testing.assert_close(first, 0.6 * brighter + 0.4 * mean)
    torch.testing.assert_close(second, ((0.6 * IMAGE + 0.4 * GREY.mean()) * 1.4).clamp(max=1))
    assert not torch.allclose(first, second)


def test_values_stay_in_range():
    strong = ColorShift(brightness=1.9, contrast=1.9, saturation=1.9, hue=0.4)
    shifted = strong(IMAGE)
    assert 0 <= shifted.min() <= shifted.max() <= 1
