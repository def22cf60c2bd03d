"""The greatest batch of each bucket, and an epoch's time from two of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from modules.batch import Sample
from modules.buckets import BucketBatchSampler
from modules.loading import make_source
from modules.trial_batches import Tried, estimate_seconds, find_batches

MODEL = SimpleNamespace(vae_scale_factor=8)


class Sizes:
    """Five squares of 64 pixels, and three images of 128x64."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        latents = torch.zeros(4, 8, 8 if index < 5 else 16)
        return Sample(name=str(index), caption="", latents=latents)


def source(**options):
    sampler = BucketBatchSampler([range(5), range(5, 8)], **options)
    return make_source(Sizes(), sampler, repeats=2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_greatest_batch_of_each_bucket(world_size):
    found = find_batches(source(batch_size=2, rank=0, world_size=world_size), MODEL)
    assert [batch.size for batch in found] == [(64, 64), (128, 64)]
    assert [len(batch.indices) for batch in found] == [2 * world_size, min(2 * world_size, 3)]
    assert [batch.images for batch in found] == [4, 4]
    assert [batch.total for batch in found] == [5, 3]
    assert str(found[1]) == "128x64 (4 images)"


def test_an_epochs_time_is_that_of_its_batches_by_their_pixels():
    own = source(batch_size=2)
    small, large = find_batches(own, MODEL)
    # Batches of 2, 2, 1 squares and of 2, 1 wide ones: a wide image is two squares.
    seconds = estimate_seconds(
        [small, large],
        own,
        Tried(small, 4.0, 0.0, None, batches=2),  # 2 s a batch of two squares
        Tried(large, 6.0, 0.5, None, batches=2),  # 3 s of four
    )
    assert seconds == pytest.approx(2 + 2 + 1.5 + 3 + 2 + 5 * 0.5)


def test_the_first_steps_start_up_is_not_counted_in_every_step():
    own = source(batch_size=2)
    small, large = find_batches(own, MODEL)
    first = Tried(small, 60.0, 0.0, None, batches=1)
    seconds = estimate_seconds([small, large], own, first, Tried(large, 3.0, 0, None, batches=1))
    assert seconds == pytest.approx(5 * 3.0)


def test_memory_stands_beside_the_time_where_it_is_known():
    batch = find_batches(source(batch_size=1), MODEL)[0]
    assert str(Tried(batch, 1.25, 0.0, 3 * 2**30, batches=1)) == "64x64 (2 images) 1.2 s, 3.0 GiB"
    assert str(Tried(batch, 0.25, 0.0, None, batches=1)) == "64x64 (2 images) 0.25 s"
