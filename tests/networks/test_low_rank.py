"""A Linear layer and its LoRA as one operation: the same numbers, fewer of everything."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from operations import Operations
from probes import outputs, perturb
from torch import nn

from modules.models.lean_blocks import keep_less
from networks.dropout import Dropout
from networks.lora import LoRA, LoRALayer
from networks.low_rank import LowRankLinear, LowRankLinears


def test_gradients():
    torch.manual_seed(0)
    options = {"dtype": torch.double, "requires_grad": True}
    x, down, up = (torch.randn(size, **options) for size in ((2, 5, 7), (3, 7), (6, 3)))
    weight, bias = torch.randn(6, 7, dtype=torch.double), torch.randn(6, dtype=torch.double)
    for own in (bias, None):
        assert torch.autograd.gradcheck(
            lambda x, down, up, own=own: LowRankLinear.apply(x, weight, own, down, up, 0.7),
            (x, down, up),
        )


@pytest.mark.parametrize("shape", [(2, 5, 16), (3, 16)], ids=["tokens", "rows"])
def test_the_same_as_the_parts(shape):
    torch.manual_seed(0)
    base, x = nn.Linear(16, 24).requires_grad_(False), torch.randn(shape, requires_grad=True)
    layer = LoRALayer(base, rank=4, alpha=2)
    perturb(layer)
    own = [x, layer.lora_down.weight, layer.lora_up.weight]
    expected = base(x) + layer(x)
    joined = LowRankLinear.apply(x, base.weight, base.bias, *own[1:], layer.scale)
    assert torch.allclose(joined, expected, atol=1e-6)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, own, weights)
    for found, grad in zip(torch.autograd.grad(joined, own, weights), wanted, strict=True):
        assert torch.allclose(found, grad, atol=1e-5)


def test_operations_of_a_step():
    """Two products beside the base's forward, four backward; no cast, no scaling, no sum alone."""
    model = tiny.make_sd()
    model.denoiser.requires_grad_(False)
    linear = next(m for m in model.denoiser.modules() if type(m) is nn.Linear)
    x = torch.randn(2, 5, linear.in_features, requires_grad=True)
    with Operations() as plain:
        linear(x).sum().backward()
    network = LoRA(rank=2)
    network.attach(model)
    joined = next(m for m in model.denoiser.modules() if "forward" in vars(m))
    x = torch.randn(2, 5, joined.in_features, requires_grad=True)
    with Operations() as ours:
        joined(x).sum().backward()
    products = ("mm", "addmm", "addmm_")
    count = sum(ours.counts[p] for p in products) - sum(plain.counts[p] for p in products)
    assert count == 6
    assert not ours.counts["mul"] + ours.counts["_to_copy"] + ours.counts["add"]


def test_nothing_is_saved_for_the_frozen_weight_and_the_input_once():
    base = nn.Linear(64, 48).requires_grad_(False)
    down, up = (torch.randn(size, requires_grad=True) for size in ((4, 64), (48, 4)))
    x = torch.randn(100, 64, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        LowRankLinear.apply(x, base.weight, base.bias, down, up, 0.5)
    own = {t.untyped_storage().data_ptr() for t in (base.weight, down, up)}
    activations = sum(size for place, size in kept.items() if place not in own)
    assert activations == 4 * (100 * 64 + 100 * 4)


def test_what_can_not_be_one_operation_goes_by_its_parts():
    model = tiny.make_sd()
    before = outputs(model)
    network = LoRA(rank=2)
    network.attach(model)
    perturb(network)
    joined = outputs(model)[1]
    for layer in network.layers.values():  # nothing is dropped, but the layer is asked
        layer.dropouts = Dropout(rank_dropout=1e-9)
    network.train()
    assert torch.allclose(outputs(model)[1], joined, atol=1e-5)
    assert not torch.equal(joined, before[1])


def test_the_bases_own_gradients_stay():
    model = tiny.make_sd()
    network = LoRA(rank=2)
    network.attach(model)
    perturb(network)
    linear = next(m for m in model.denoiser.modules() if "forward" in vars(m))
    linear.weight.requires_grad_(True)
    linear(torch.randn(3, linear.in_features)).sum().backward()
    assert linear.weight.grad.abs().sum() > 0


def test_two_adapters_on_one_layer_add_up_and_leave_in_any_order():
    model = tiny.make_sd()
    plain = outputs(model)[1]
    networks = [LoRA(rank=2), LoRA(rank=3)]
    for network in networks:
        network.attach(model)
    layer = next(m for m in model.denoiser.modules() if "forward" in vars(m))
    for network in networks:
        perturb(network)
    changes = [
        each.delta_weight()
        for network in networks
        for name, each in network.layers.items()
        if network._base[name] is layer
    ]
    x = torch.randn(3, layer.in_features)
    expected = F.linear(x, layer.weight + sum(changes), layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    networks[0].detach()
    expected = F.linear(x, layer.weight + changes[1], layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    networks[0].attach(model)
    for network in networks:
        network.detach()
    assert torch.equal(outputs(model)[1], plain)


def test_gradients_of_several_with_one_input():
    torch.manual_seed(0)
    options = {"dtype": torch.double, "requires_grad": True}
    plain = {"dtype": torch.double}
    sizes, ranks, scales = (6, 4, 5), (3, 2, 1), (0.7, 1.0, 0.2)
    x = torch.randn(2, 5, 7, **options)
    downs = [torch.randn(rank, 7, **options) for rank in ranks]
    ups = [torch.randn(size, rank, **options) for size, rank in zip(sizes, ranks, strict=True)]
    weights = [torch.randn(size, 7, **plain) for size in sizes]
    biases = [torch.randn(6, **plain), None, torch.randn(5, **plain)]

    def together(x, *factors):
        layers = zip(weights, biases, factors[:3], factors[3:], scales, strict=True)
        return LowRankLinears.apply(x, *(value for layer in layers for value in layer))

    assert torch.autograd.gradcheck(together, (x, *downs, *ups))
    assert torch.autograd.gradcheck(lambda *factors: together(x.detach(), *factors), (*downs, *ups))


def attention(dtype, *, others=False):
    torch.manual_seed(0)
    model = tiny.make_sd()
    model.denoiser.requires_grad_(False).to(dtype)
    network = LoRA(rank=2)
    network.attach(model)
    perturb(network)
    if others:
        second = LoRA(rank=2)
        second.attach(model)
        perturb(second)
    keep_less(model.denoiser)
    block = next(m for m in model.denoiser.modules() if type(m) is BasicTransformerBlock)
    return block, network


def gradients_of(block, network, text):
    torch.manual_seed(1)
    width = block.attn1.to_q.in_features
    dtype = block.attn1.to_q.weight.dtype
    x = torch.randn(2, 4, width, dtype=dtype, requires_grad=True)
    context = torch.randn(2, 3, block.attn2.to_k.in_features, dtype=dtype, requires_grad=text)
    network.zero_grad()
    with Operations() as operations:
        output = block(x, encoder_hidden_states=context)
        output.float().square().sum().backward()
    own = [p.grad for p in network.parameters() if p.grad is not None]
    return [output.detach(), x.grad, *own], operations.counts


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("text", [False, True], ids=["text", "trained text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_queries_keys_and_values_share_a_product(monkeypatch, dtype, text, others):
    block, network = attention(dtype, others=others)
    found, counts = gradients_of(block, network, text)
    monkeypatch.setattr("networks.hooks._Joined.together", lambda *_: None)
    expected, apart = gradients_of(block, network, text)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        size = other.float().abs().max()
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert (one.float() - other.float()).abs().max() <= tolerance * size
    products = ("mm", "addmm", "addmm_")
    total, total_apart = (sum(c[p] for p in products) + c["add"] for c in (counts, apart))
    assert total == total_apart if others else total <= total_apart - 6
