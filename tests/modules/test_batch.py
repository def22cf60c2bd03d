"""Samples become batches."""

from __future__ import annotations

import pytest
import torch

from modules.batch import Sample, collate


def sample(name: str, **values) -> Sample:
    return Sample(name=name, caption=f"caption of {name}", latents=torch.zeros(4, 8, 8), **values)


def test_fields_are_stacked():
    batch = collate(
        [
            sample("a", original_size=(80, 60), extras={"pfg": torch.zeros(3)}),
            sample("b", original_size=(90, 70), extras={"pfg": torch.ones(3)}),
        ]
    )
    assert batch.names == ["a", "b"]
    assert batch.captions == ["caption of a", "caption of b"]
    assert batch.latents is not None
    assert batch.latents.shape == (2, 4, 8, 8)
    assert batch.original_size.tolist() == [[80, 60], [90, 70]]
    assert batch.extras["pfg"].shape == (2, 3)
    assert batch.pixel_values is None
    assert batch.mask is None


def test_an_image_without_a_mask_counts_fully():
    batch = collate([sample("a"), sample("b", mask=torch.full((1, 8, 8), 0.5))])
    assert batch.mask.mean((1, 2, 3)).tolist() == [1.0, 0.5]


def test_what_does_not_fit_together_is_named():
    with pytest.raises(ValueError, match="b: has no pfg, but other images of its batch have one"):
        collate([sample("a", extras={"pfg": torch.zeros(3)}), sample("b")])
    odd = Sample(name="b", caption="", latents=torch.zeros(4, 8, 6))
    with pytest.raises(ValueError, match="latents of one batch differ in shape"):
        collate([sample("a"), odd])


def test_moving_reaches_extras():
    batch = collate([sample("a", extras={"pfg": torch.zeros(3)})]).to(torch.device("meta"))
    assert batch.latents.device.type == "meta"
    assert batch.extras["pfg"].device.type == "meta"
    assert batch.names == ["a"]


def test_weights_multiply_losses_and_repeat_with_their_images():
    alike = collate([sample("a"), sample("b")])
    assert alike.loss_weight is None
    assert alike.weigh(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
    batch = collate([sample("a"), sample("b", loss_weight=0.25)]).repeat(2)
    assert batch.loss_weight.tolist() == [1.0, 1.0, 0.25, 0.25]
    assert batch.weigh(torch.full((4,), 2.0)).tolist() == [2.0, 2.0, 0.5, 0.5]
