"""Copies in a stream of their own."""

import pytest
import torch

from modules.batch import Batch
from modules.device_copies import on_device
from modules.loading import Part

pytestmark = pytest.mark.gpu


def test_groups_arrive_whole_and_nobody_waits():
    device = torch.device("cuda", torch.cuda.current_device())
    values = [torch.full((4, 4, 256, 256), float(number)) for number in range(20)]
    batches = [Batch(captions=["a"] * 4, latents=value).pin_memory() for value in values]
    groups = iter([[Part(batch=batch, images=4, weight=1.0)] for batch in batches])
    work = torch.randn(2048, 2048, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = []
        for (part,) in on_device(groups, device):
            work = torch.tanh(work @ work)  # what the copy must not wait for
            assert part.batch.latents.device == device
            sums.append(part.batch.latents.sum())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = [value.sum().item() for value in values]
    assert torch.stack(sums).tolist() == pytest.approx(expected)
