"""Groups of batches for one optimizer step."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from modules.batch import Sample
from modules.buckets import BucketBatchSampler
from modules.loading import make_loader, step_groups


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


def test_groups_hold_every_image_once_an_epoch_and_end_with_it():
    dataset = Numbers()
    sampler = BucketBatchSampler([[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]], batch_size=2, seed=1)
    loader = make_loader(dataset, sampler, num_workers=0, pin_memory=False)
    groups = step_groups(loader, sampler, gradient_accumulation_steps=4)
    sizes, seen = [], []
    for _ in range(4):  # two epochs of six batches: four and two
        group = next(groups)
        sizes.append(len(group))
        for planned, batch in group:
            assert batch.names == [str(index) for index in planned]
            seen += planned
    assert sizes == [4, 2, 4, 2]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert dataset.epochs == [0, 1]


def test_worker_processes_give_the_same_batches():
    dataset = Numbers()
    sampler = BucketBatchSampler([list(range(10))], batch_size=4, shuffle=False)
    names = []
    for num_workers in (0, 2):
        loader = make_loader(dataset, sampler, num_workers=num_workers, pin_memory=False)
        groups = step_groups(loader, sampler, gradient_accumulation_steps=1)
        names.append([next(groups)[0][1].names for _ in range(5)])
    assert names[0] == names[1]
