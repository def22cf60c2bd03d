"""Groups of batches for one optimizer step."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from modules.batch import Batch, Sample
from modules.buckets import BucketBatchSampler
from modules.device_copies import on_device
from modules.loading import Source, make_source, step_groups


class Numbers(Dataset):
    """Ten samples; remembers the epochs that it is told."""

    def __init__(self):
        self.epochs: list[int] = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Sample(name=str(index), caption="", latents=torch.full((1, 2, 2), float(index)))

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def source_of(buckets, *, num_workers=0, repeats=1, weight=1.0, **options) -> Source:
    sampler = BucketBatchSampler(buckets, **options)
    return make_source(Numbers(), sampler, num_workers=num_workers, repeats=repeats, weight=weight)


def test_groups_hold_every_image_once_an_epoch_and_end_with_it():
    source = source_of([[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]], batch_size=2, seed=1)
    groups = step_groups(source, gradient_accumulation_steps=4)
    sizes, seen = [], []
    for _ in range(4):  # two epochs of six batches: four and two
        group = next(groups)
        sizes.append(len(group))
        images = sum(part.images for part in group)
        for part in group:
            assert part.images == len(part.batch.names)
            assert part.weight == 1 / images
            seen += [int(name) for name in part.batch.names]
    assert sizes == [4, 2, 4, 2]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert source.loader.dataset.dataset.epochs == [0, 1]


def test_worker_processes_give_the_same_batches():
    names = []
    for num_workers in (0, 2):
        options = {"batch_size": 4, "shuffle": False, "num_workers": num_workers}
        groups = step_groups(source_of([list(range(10))], **options), gradient_accumulation_steps=1)
        names.append([next(groups)[0].batch.names for _ in range(5)])
    assert names[0] == names[1]


def test_repeats_count_as_images():
    source = source_of([[0, 1]], batch_size=2, repeats=3)
    group = next(step_groups(source, gradient_accumulation_steps=1))
    assert (group[0].images, group[0].weight) == (6, 1 / 6)


def test_prior_images_stand_beside_and_change_no_step():
    options = {"batch_size": 2, "shuffle": False}
    alone = step_groups(source_of([[0, 1, 2]], **options), gradient_accumulation_steps=2)
    prior = source_of([[5, 6, 7, 8, 9]], weight=0.5, **options)
    source = source_of([[0, 1, 2]], **options)
    both = step_groups(source, prior=prior, gradient_accumulation_steps=2)
    seen = []
    for _ in range(3):
        without, group = next(alone), next(both)
        assert [p.batch.names for p in group[:2]] == [p.batch.names for p in without]
        assert [p.weight for p in group[:2]] == [p.weight for p in without] == [1 / 3, 1 / 3]
        images = sum(part.images for part in group[2:])
        assert all(part.weight == 0.5 / images for part in group[2:])
        seen += [name for part in group[2:] for name in part.batch.names]
    assert seen == ["5", "6", "7", "8", "9", "5", "6", "7", "8", "9"]


def test_a_rank_without_an_image_has_weight_zero_and_the_others_the_mean():
    parts = []
    for rank in range(2):
        source = source_of([[0, 1, 2]], batch_size=1, shuffle=False, rank=rank, world_size=2)
        parts.append(next(step_groups(source, gradient_accumulation_steps=2)))
    assert [[part.images for part in group] for group in parts] == [[2, 1], [2, 1]]
    assert [part.weight for part in parts[0]] == [2 / 3, 2 / 3]  # gradients are averaged over two
    assert [part.weight for part in parts[1]] == [2 / 3, 0]


def test_where_there_is_no_stream_to_copy_in_the_groups_stay_as_they_are():
    groups = iter([])
    assert on_device(groups, torch.device("cpu")) is groups


def test_a_batch_knows_all_its_tensors():
    batch = Batch(
        captions=["a"], latents=torch.zeros(1), extras={"pfg": torch.ones(1)}, mask=torch.ones(2)
    )
    assert [len(tensor) for tensor in batch.tensors()] == [1, 2, 1]
