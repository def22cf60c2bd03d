"""The geometry of transforms: what lies where afterwards, and what SDXL is told of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from modules.transform import Transform

SIZE = (96, 64)  # width, height
TRANSFORMS = [
    Transform(zoom=0.8, shift=(1.0, -1.0)),
    Transform(zoom=0.9, shift=(-0.3, 0.6), is_flipped=True),
    Transform(angle=30.0),
    Transform(angle=-12.0, zoom=0.85, shift=(0.9, -0.7), is_flipped=True),
    Transform(angle=45.0, zoom=0.7, shift=(0.4, 0.5)),
]


def dot(x, y, *, size=SIZE, sigma=2.5):
    """A picture (3, H, W) in 0..1 of one soft dot at a place in pixels, from the upper left."""
    width, height = size
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None, :] + 0.5
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)).expand(3, -1, -1)


def place(values):
    """The centre of mass of the brightest part, in pixels."""
    values = values.mean(dim=0)
    weights = torch.where(values > values.max() / 2, values, 0)
    height, width = values.shape
    x = (weights.sum(0) * (torch.arange(width) + 0.5)).sum() / weights.sum()
    y = (weights.sum(1) * (torch.arange(height) + 0.5)).sum() / weights.sum()
    return x.item(), y.item()


def target(transform, x, y):
    """Where a place of the image comes to lie: turned back, scaled, mirrored."""
    width, height = SIZE
    angle = math.radians(transform.angle)
    sine, cosine = abs(math.sin(angle)), math.cos(angle)
    greatest = min(
        width / (width * cosine + height * sine), height / (width * sine + height * cosine)
    )
    x, y = x - width / 2, y - height / 2
    x, y = (
        math.cos(angle) * x + math.sin(angle) * y,
        -math.sin(angle) * x + math.cos(angle) * y,
    )
    room = greatest * (1 - transform.zoom)
    x = (x - room * transform.shift[0] * width / 2) / (greatest * transform.zoom) + width / 2
    y = (y - room * transform.shift[1] * height / 2) / (greatest * transform.zoom) + height / 2
    return (width - x if transform.is_flipped else x), y


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_picture_guide_and_mask_go_the_same_way(transform):
    for x, y in ((48, 32), (44, 35), (52, 28)):
        picture = dot(x, y)
        mask = functional.avg_pool2d(picture[:1], 4)  # of a grid of its own
        expected = target(transform, x, y)
        moved = place(transform.picture(picture * 2 - 1) / 2 + 0.5)
        guide = place(transform.follow(picture))
        on_grid = place(transform.follow(mask))
        assert moved == pytest.approx(expected, abs=0.2)
        assert guide == pytest.approx(expected, abs=0.2)
        assert (4 * on_grid[0], 4 * on_grid[1]) == pytest.approx(expected, abs=1)


def test_nothing_is_done_at_first():
    picture = torch.rand(3, 8, 8) * 2 - 1
    assert torch.equal(Transform().picture(picture), picture)
    assert Transform().follow(picture) is picture
    assert Transform().corner((3, 7), original=(300, 200), size=(96, 64)) == (3, 7)


def test_a_flip_alone_computes_no_pixel():
    picture = torch.rand(3, 8, 8) * 2 - 1
    assert torch.equal(Transform(is_flipped=True).picture(picture), picture.flip(-1))


def test_a_flip_is_the_mirror_of_all_else():
    picture = torch.rand(3, 64, 96) * 2 - 1
    options = {"angle": 17.0, "zoom": 0.8, "shift": (0.4, -0.9)}
    mirrored = Transform(is_flipped=True, **options).picture(picture)
    assert torch.equal(mirrored, Transform(**options).picture(picture).flip(-1))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
def test_no_corner_is_empty(size):
    """Corners of the result are places of the image; at the greatest cut one touches its edge."""
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])
    for angle in (-45.0, -20.0, -1.0, 0.0, 5.0, 33.0, 45.0):
        for zoom, shift in ((1.0, (0, 0)), (0.7, (1, 1)), (0.9, (-1, 1)), (0.5, (0.2, -1))):
            transform = Transform(angle=angle, zoom=zoom, shift=shift)
            places = corners @ torch.tensor(transform._matrix(*size)).T
            assert places.abs().max() <= 1 + 1e-6
            if zoom == 1:
                assert places.abs().max() == pytest.approx(1, abs=1e-6)


def test_a_white_image_stays_white():
    white = torch.ones(3, 64, 96)
    for transform in TRANSFORMS:
        torch.testing.assert_close(transform.picture(white), white)
        torch.testing.assert_close(transform.follow(white[:1]), white[:1])


def test_values_stay_in_range():
    picture = (torch.rand(3, 64, 96) > 0.5) * 2.0 - 1
    for transform in TRANSFORMS:
        assert transform.picture(picture).abs().max() <= 1


def test_the_corner_of_a_cut():
    size, original = (96, 64), (300, 200)  # scaled to cover: 96 x 64, nothing cut off
    whole = Transform().corner((0, 0), original=original, size=size)
    assert whole == (0, 0)
    # The right upper half-size cut, scaled up by two, is a crop of an image scaled by two.
    cut = Transform(zoom=0.5, shift=(1, -1))
    assert cut.corner((0, 0), original=original, size=size) == (0, 96)
    assert cut.corner((5, 20), original=original, size=size) == (10, 2 * (20 + 48))
    centred = Transform(zoom=0.5)
    assert centred.corner((0, 0), original=original, size=size) == (32, 48)


def test_the_corner_in_a_mirrored_picture():
    size, original = (64, 64), (320, 160)  # scaled to 128 x 64, of which 64 are taken
    flip = Transform(is_flipped=True)
    assert flip.corner((0, 32), original=original, size=size) == (0, 32)
    assert flip.corner((0, 10), original=original, size=size) == (0, 128 - 10 - 64)
    cut = Transform(is_flipped=True, zoom=0.5, shift=(1, 0))
    assert cut.corner((0, 10), original=original, size=size) == (32, 2 * (128 - 10 - 64))


def test_the_corner_of_a_turned_cut_is_that_of_one_with_its_centre_and_area():
    turned = Transform(angle=45.0)
    scale = 1 / math.sqrt(2)
    expected = round(64 * (1 - scale) / 2 / scale)
    assert turned.corner((0, 0), original=(64, 64), size=(64, 64)) == (expected, expected)
