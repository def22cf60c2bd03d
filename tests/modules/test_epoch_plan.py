from collections import Counter

import numpy as np
import pytest

from modules.buckets import BucketBatchSampler

BUCKETS = [list(range(10)), range(10, 13), [], [13], range(14, 45)]


def plan_in_lists(buckets, *, size, seed, epoch, shuffle):
    """The plan as lists of lists, drawn as every version so far has drawn it."""
    rng = np.random.default_rng([seed, epoch])
    batches = []
    for bucket in map(list, buckets):
        if bucket:
            indices = rng.permutation(bucket).tolist() if shuffle else bucket
            batches += [indices[i : i + size] for i in range(0, len(indices), size)]
    return [batches[i] for i in rng.permutation(len(batches))] if shuffle else batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (3, 1), (2, 2), (64, 1)])
def test_epochs_are_those_of_plain_lists(shuffle, batch_size, world_size):
    sampler = BucketBatchSampler(
        BUCKETS, batch_size=batch_size, world_size=world_size, shuffle=shuffle, seed=7
    )
    for epoch in range(3):
        wanted = plan_in_lists(
            BUCKETS, size=batch_size * world_size, seed=7, epoch=epoch, shuffle=shuffle
        )
        plan = sampler.plan(epoch)
        assert list(plan) == wanted
        assert plan == wanted
        assert len(plan) == len(wanted) == len(sampler)
        assert plan[1:-1] == wanted[1:-1]
        assert plan[-1] == wanted[-1]
        sampler.set_epoch(epoch, start_batch=2)
        assert list(sampler) == [batch[:: sampler.world_size] for batch in wanted[2:]]
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_sampler_without_images_has_no_batches():
    assert list(BucketBatchSampler([[], []], batch_size=2)) == []


def test_a_million_images_are_planned_in_little_memory():
    import tracemalloc

    sampler = BucketBatchSampler([range(700_000), range(700_000, 1_000_000)], batch_size=4)
    tracemalloc.start()
    plan = sampler.plan(0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 16 * 2**20  # as lists of lists: 55 MiB
    assert Counter(index for batch in plan for index in batch) == Counter(range(1_000_000))
