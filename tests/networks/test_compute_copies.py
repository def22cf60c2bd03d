"""Parameters in the dtype of the base: made at once, and their gradients given back at once."""

from __future__ import annotations

import pytest
import torch
from operations import Operations
from torch import nn

from networks.compute_copies import ComputeCopies


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size)) for size in ((3, 5), (100,), (7, 1))]


def loss(copies, parameters):
    terms = [copies.of(p, torch.bfloat16).float().square().sum() for p in parameters]
    return torch.stack(terms).sum()


def test_gradients_reach_the_parameters_in_float32(parameters):
    copies = ComputeCopies(parameters)
    for _ in range(2):  # they add up, as over accumulated batches
        loss(copies, parameters).backward()
    for parameter in parameters:
        assert parameter.grad.dtype == torch.float32
        expected = 4 * parameter.detach().bfloat16().float()
        assert torch.allclose(parameter.grad, expected, rtol=1e-2)


def test_one_copy_for_all_in_a_pass(parameters):
    copies = ComputeCopies(parameters)
    with Operations() as counted:
        for parameter in parameters * 3:
            copies.of(parameter, torch.bfloat16)
    assert counted.counts["_foreach_copy_"] == 1
    assert not counted.counts["_to_copy"]


def test_a_changed_parameter_is_copied_again(parameters):
    copies = ComputeCopies(parameters)
    with torch.no_grad():
        before = copies.of(parameters[1], torch.bfloat16)
        assert copies.of(parameters[1], torch.bfloat16) is before
        parameters[1].add_(1)
        after = copies.of(parameters[1], torch.bfloat16)
    assert torch.equal(after, parameters[1].detach().bfloat16())
    assert copies.of(parameters[1], torch.bfloat16).requires_grad  # where gradients are wanted


def test_what_is_not_used_gets_no_gradient(parameters):
    copies = ComputeCopies(parameters)
    copies.of(parameters[0], torch.bfloat16).float().sum().backward()
    assert parameters[0].grad is not None
    assert parameters[1].grad is None


def test_a_parameter_of_that_dtype_is_itself(parameters):
    assert ComputeCopies(parameters).of(parameters[0], torch.float32) is parameters[0]
