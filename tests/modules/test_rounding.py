"""Weights as their file will have them, and back bit for bit."""

from __future__ import annotations

import pytest
import torch

from modules.rounding import rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_rounded_and_come_back(dtype):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.tensor(1e-9))]
    before = [weight.detach().clone() for weight in weights]
    with rounded(weights, dtype):
        held = [weight.detach().clone() for weight in weights]
    assert all(torch.equal(a, b.to(dtype).float()) for a, b in zip(held, before, strict=True))
    assert torch.equal(held[0], before[0]) == (dtype == torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_they_come_back_from_an_error():
    weight = torch.nn.Parameter(torch.tensor([0.1]))

    def fail():
        with rounded([weight], torch.bfloat16):
            raise RuntimeError(f"no picture with {weight.item():.6f}")

    with pytest.raises(RuntimeError, match=r"no picture with 0\.100098"):
        fail()
    assert weight.item() == torch.tensor([0.1]).item()


def test_no_dtype_leaves_them_alone():
    weight = torch.nn.Parameter(torch.tensor([0.1]))
    version = weight._version
    with rounded([weight], None):
        pass
    assert weight._version == version
