"""What a snapshot puts back: values, and into the same objects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modules.snapshot import Snapshot


def steps(parameters, optimizer, schedule, count):
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("before", [0, 2])
def test_an_optimizer_and_its_schedule_go_on_as_if_nothing_had_been(before):
    ends = []
    for tried in (False, True):
        parameters = [nn.Parameter(torch.arange(4.0))]
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        steps(parameters, optimizer, schedule, before)
        if tried:
            known = optimizer.param_groups[0]
            snapshot = Snapshot(parameters, [optimizer, schedule])
            steps(parameters, optimizer, schedule, 3)
            snapshot.restore()
            assert optimizer.param_groups[0] is known
            assert bool(optimizer.state) == bool(before)
            assert schedule.last_epoch == before
        steps(parameters, optimizer, schedule, 2)
        ends.append((parameters[0].detach().clone(), schedule.get_last_lr()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_tensors_keep_their_identity_and_new_entries_go():
    class Held:
        def __init__(self):
            self.tensors = {"a": torch.ones(2)}
            self.numbers = [1, 2]
            self.pair = (torch.zeros(1), {"x": {1}})
            self.generator = torch.Generator().manual_seed(3)

    held = Held()
    tensor, numbers = held.tensors["a"], held.numbers
    snapshot = Snapshot([], [held])
    drawn = torch.rand(2, generator=held.generator)
    tensor.mul_(5)
    held.tensors["b"] = torch.ones(1)
    held.numbers = [7]
    numbers.append(3)
    held.pair[0].add_(1)
    held.pair[1]["x"].add(2)
    held.added = True
    snapshot.restore()
    assert held.tensors == {"a": tensor}
    assert tensor.tolist() == [1, 1]
    assert held.numbers is numbers
    assert numbers == [1, 2]
    assert held.pair[0].tolist() == [0]
    assert held.pair[1] == {"x": {1}}
    assert not hasattr(held, "added")
    assert torch.equal(torch.rand(2, generator=held.generator), drawn)


def test_a_gradient_scaler_is_as_new():
    scaler = torch.amp.GradScaler("cpu")
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    fresh = scaler.state_dict()
    snapshot = Snapshot([parameter], [optimizer, scaler])
    scaler.scale(parameter.sum() * torch.inf).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < fresh["scale"]
    snapshot.restore()
    assert scaler.state_dict() == fresh
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)  # would be refused a second time
