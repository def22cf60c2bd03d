"""A Linear layer with its adapter's change in its weight: the same numbers, nothing large kept."""

from __future__ import annotations

import pytest
import torch
from operations import Operations
from probes import perturb
from torch import nn

from networks.changes import Decomposed, Hadamard, Kronecker, LowRank
from networks.compute_copies import ComputeCopies
from networks.costs import merging_pays
from networks.dora import decompose
from networks.hooks import adding, join
from networks.loha import LoHaLayer
from networks.lokr import LoKrLayer
from networks.lora import LoRALayer
from networks.merged import MergedLinear

DOUBLE = {"dtype": torch.double, "requires_grad": True}
CHANGES = {
    "lora": (LowRank(0.7), [(3, 8), (6, 3)]),
    "loha": (Hadamard(0.7), [(6, 2), (2, 8), (6, 2), (2, 8)]),
    "lokr": (Kronecker(0.7, is_first_whole=True, is_second_whole=True), [(2, 4), (3, 2)]),
    "lokr, low": (
        Kronecker(0.7, is_first_whole=True, is_second_whole=False),
        [(2, 4), (3, 1), (1, 2)],
    ),
    "lokr, both low": (
        Kronecker(0.7, is_first_whole=False, is_second_whole=False),
        [(2, 1), (1, 4), (3, 1), (1, 2)],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("wants_rows", [True, False])
def test_gradients(name, wants_rows):
    torch.manual_seed(0)
    change, shapes = CHANGES[name]
    factors = [torch.randn(shape, **DOUBLE) for shape in shapes]
    x = torch.randn(2, 5, 8, dtype=torch.double, requires_grad=wants_rows)
    weight, bias = torch.randn(6, 8, dtype=torch.double), torch.randn(6, dtype=torch.double)
    for own in (bias, None):
        assert torch.autograd.gradcheck(
            lambda x, *factors, own=own: MergedLinear.apply(x, weight, own, change, *factors),
            (x, *factors),
        )


LAYERS = {
    "lora": lambda base: LoRALayer(base, rank=4, alpha=2),
    "loha": lambda base: LoHaLayer(base, rank=4, alpha=2),
    "lokr": lambda base: LoKrLayer(base, rank=2, alpha=1, factor=4),
    "lokr, both low": lambda base: LoKrLayer(base, rank=1, alpha=1, factor=4, decompose_both=True),
    "lokr, whole": lambda base: LoKrLayer(base, rank=64, alpha=1, factor=4),
    "dora, output": lambda base: decomposed(base, "output"),
    "dora, input": lambda base: decomposed(base, "input"),
}


def decomposed(base, axis):
    layer = LoRALayer(base, rank=4, alpha=2)
    decompose(layer, base.weight, axis)
    return layer


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_as_beside_the_base(name, has_bias):
    torch.manual_seed(0)
    base = nn.Linear(32, 48, bias=has_bias).requires_grad_(False)
    layer = LAYERS[name](base)
    perturb(layer)
    x = torch.randn(2, 100, 32, requires_grad=True)
    own = [x, *layer.parameters()]
    expected = adding(layer, lambda: 1.0)(base, (x,), base(x))
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, own, weights)
    join(layer, base, lambda: 1.0, ComputeCopies(list(layer.parameters())))
    with Operations() as operations:
        merged = base(x)
    assert operations.counts["mm"] + operations.counts["addmm"] <= 3
    assert type(merged.grad_fn).__name__ == "MergedLinearBackward"
    assert torch.allclose(merged, expected, atol=1e-5)
    for found, grad in zip(torch.autograd.grad(merged, own, weights), wanted, strict=True):
        assert torch.allclose(found, grad, atol=1e-5 * max(1.0, grad.abs().max().item()))


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_of_the_weights_size_is_kept(name):
    base = nn.Linear(64, 48).requires_grad_(False)
    layer = LAYERS[name](base)
    join(layer, base, lambda: 1.0, ComputeCopies(list(layer.parameters())))
    x = torch.randn(1000, 64, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = base(x)
    own = [base.weight, base.bias, *layer.parameters(), x, output]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    assert not {place: size for place, size in kept.items() if place not in known}
    assert x.untyped_storage().data_ptr() in kept


def test_in_half_precision_a_small_change_is_not_lost():
    torch.manual_seed(0)
    base = nn.Linear(64, 48).requires_grad_(False).to(torch.bfloat16)
    layer = LoRALayer(base, rank=4, alpha=4)
    perturb(layer)
    with torch.no_grad():
        layer.lora_up.weight.mul_(1e-4)  # a change far below the rounding of the weight
    x = torch.randn(4096, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", enabled=False):
        before = base(x)
        join(layer, base, lambda: 1000.0, ComputeCopies(list(layer.parameters())))
        change = (base(x) - before).float()
    exact = x.float() @ (1000.0 * layer.delta_weight()).T
    assert (change - exact).norm() < 0.3 * exact.norm()


def test_what_is_cheaper_is_chosen_by_the_rows():
    assert merging_pays(4096, 320, 320)
    assert not merging_pays(154, 768, 320)  # keys and values of the text
    assert not merging_pays(1024, 1280, 1280)


def test_magnitudes_of_zero_get_no_gradient_that_is_not_finite():
    torch.manual_seed(0)
    factors = [torch.zeros(6, 1), torch.randn(3, 8), torch.randn(6, 3)]
    factors = [factor.requires_grad_() for factor in factors]
    change = Decomposed(LowRank(1.0), by_output=True)
    output = MergedLinear.apply(torch.randn(5, 8), torch.randn(6, 8), None, change, *factors)
    output.sum().backward()
    assert all(torch.isfinite(factor.grad).all() for factor in factors)


@pytest.mark.parametrize("name", LAYERS)
def test_of_a_network_that_rests_only_the_input_has_a_gradient(name):
    torch.manual_seed(0)
    base = nn.Linear(32, 48).requires_grad_(False)
    layer = LAYERS[name](base).requires_grad_(False)
    perturb(layer)
    x = torch.randn(2, 100, 32, requires_grad=True)
    adding(layer, lambda: 1.0)(base, (x,), base(x)).square().sum().backward()
    expected, x.grad = x.grad, None
    join(layer, base, lambda: 1.0, ComputeCopies(list(layer.parameters())))
    output = base(x)
    with Operations() as operations:
        output.square().sum().backward()
    assert torch.allclose(x.grad, expected, atol=1e-4)
    assert operations.counts["mm"] + operations.counts["bmm"] <= 3  # the factors', the input's
