"""Random masks: repeatable, of every kind, as large as their parameters say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.models.inpaint_masks import draw_mask, draw_masks

SIZE = (96, 64)


def draw(count: int = 200, size=SIZE, **options) -> torch.Tensor:
    return torch.stack([draw_mask(size, np.random.default_rng(n), **options) for n in range(count)])


def test_masks_are_0_or_1_and_of_the_images_size():
    masks = draw()
    assert masks.shape == (200, 1, 64, 96)
    assert masks.unique().tolist() == [0, 1]


@pytest.mark.parametrize("whole", [0.0, 0.25, 1.0])
def test_everything_is_masked_as_often_as_said(whole):
    share = (draw(whole=whole).flatten(1).mean(dim=1) == 1).float().mean().item()
    assert share == pytest.approx(whole, abs=0.08)


def test_a_part_is_painted_and_a_part_is_kept():
    areas = draw(whole=0.0).flatten(1).mean(dim=1)
    assert areas.min() > 0
    assert 0.15 < areas.mean() < 0.35
    assert areas.quantile(0.95) < 0.6


def test_all_kinds_are_drawn():
    kinds = {"rectangle": 0, "other": 0}
    for mask in draw(whole=0.0, most=1)[:, 0].bool():
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        full = rows.sum() * columns.sum() == mask.sum()
        kinds["rectangle" if full else "other"] += 1
    assert 40 < kinds["rectangle"] < 100  # a third of 200
    assert 100 < kinds["other"] < 160


@pytest.mark.parametrize("side", [(0.2, 0.2), (0.5, 0.5)])
def test_a_shape_has_the_sides_that_are_said(side):
    masks = draw(whole=0.0, most=1, shape_side=side, stroke_width=side, stroke_length=(0.0, 0.0))
    heights = masks.amax(dim=3).sum(dim=2).flatten()  # a stroke of no length is a dot
    assert heights.max().item() == pytest.approx(side[0] * 64, abs=2)


def test_more_turns_and_longer_strokes_paint_more():
    short = draw(whole=0.0, stroke_length=(0.1, 0.2), most_turns=0)
    long = draw(whole=0.0, stroke_length=(0.5, 0.6), most_turns=6)
    assert long.mean() > 1.2 * short.mean()


def test_more_shapes_paint_more():
    assert draw(whole=0.0, most=8).mean() > 1.5 * draw(whole=0.0, most=1).mean()


def test_a_seed_draws_the_same_masks_and_the_next_step_others():
    torch.manual_seed(3)
    first, next_ones = draw_masks(4, SIZE), draw_masks(4, SIZE)
    torch.manual_seed(3)
    assert torch.equal(draw_masks(4, SIZE), first)
    assert not torch.equal(first, next_ones)
    assert len({mask.numpy().tobytes() for mask in torch.cat([first, next_ones])}) > 4
    torch.manual_seed(4)  # another process's
    assert not torch.equal(draw_masks(4, SIZE), first)
