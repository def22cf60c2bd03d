"""What holds for every adapter: no effect at first, merged as attached, files, ranks by size."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors import safe_open
from torch import nn

from networks.base import Adapter
from networks.loha import LoHa, LoHaLayer
from networks.lora import LoRA, LoRALayer

EVERYTHING = ("unet", "text_encoders")
ALGORITHMS = pytest.mark.parametrize("algorithm", [LoRA, LoHa])
LAYERS = pytest.mark.parametrize("layer_class", [LoRALayer, LoHaLayer])
BASES = pytest.mark.parametrize(
    "base",
    [
        nn.Linear(6, 10),
        nn.Conv2d(6, 10, 1),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
    ],
    ids=["linear", "conv1x1", "conv3x3", "strided"],
)


def attached(algorithm: type[Adapter], **options):
    model = tiny.make_sd()
    network = algorithm(rank=3, alpha=2, conv_rank=2, targets=EVERYTHING, **options)
    network.attach(model)
    return model, network


@ALGORITHMS
def test_a_fresh_adapter_changes_nothing(algorithm):
    before = outputs(tiny.make_sd())
    model, _ = attached(algorithm)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))


@ALGORITHMS
def test_it_has_an_effect_merges_as_attached_and_comes_off(algorithm):
    model, network = attached(algorithm, multiplier=0.5)
    before = outputs(tiny.make_sd())
    perturb(network)
    beside = outputs(model)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(beside, before, strict=True))
    network.detach()
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))
    network.merge()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(beside, outputs(model), strict=True))


@LAYERS
@BASES
def test_forward_is_the_product_with_the_changed_weight(layer_class, base):
    layer = layer_class(base, rank=3, alpha=1.5)
    perturb(layer)
    x = torch.randn(2, 6, 8, 8) if isinstance(base, nn.Conv2d) else torch.randn(2, 5, 6)
    delta = layer.delta_weight()
    assert delta.shape == base.weight.shape
    assert delta.abs().max() > 1e-3
    with torch.no_grad():
        plain = base(x)
        base.weight += delta
        changed = base(x)
        base.weight -= delta
        assert torch.allclose(plain + layer(x), changed, atol=1e-5)


@ALGORITHMS
def test_files_are_read_back_whatever_the_rank_of_the_reader(algorithm, tmp_path):
    model, first = attached(algorithm)
    perturb(first)
    expected = outputs(model)
    path = tmp_path / "adapter.safetensors"
    first.save(path, dtype=torch.float32, metadata=first.describe(model))
    first.detach()
    second = algorithm(rank=7, conv_rank=1, targets=EVERYTHING)
    second.attach(model)
    second.load(path)
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(model), strict=True))
    assert (second.rank, second.alpha, second.conv_rank, second.conv_alpha) == (3, 2, 2, 2)
    other = LoHa if algorithm is LoRA else LoRA
    third = other(rank=3, conv_rank=2, targets=EVERYTHING)
    third.attach(model)
    with pytest.raises(ValueError, match=f"is no {other.__name__} of this layer"):
        third.load(path)


@ALGORITHMS
def test_dynamic_ranks_follow_the_layers_size(algorithm, tmp_path):
    model = tiny.make_sd()
    network = algorithm(rank="dynamic", conv_rank="dynamic")
    network.attach(model)
    factor = 2 if algorithm is LoRA else 1
    for name, layer in network.layers.items():
        base = network._base[name]
        sizes = base.weight.shape[:2]
        expected = factor * min(math.ceil(math.sqrt(size)) for size in sizes)
        assert layer.rank == (min(expected, *sizes) if base.weight.dim() == 4 else expected)
        assert layer.alpha == 1
    assert len({layer.rank for layer in network.layers.values()}) > 1
    path = tmp_path / "dynamic.safetensors"
    network.save(path, dtype=torch.float32, metadata=network.describe(model))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "Dynamic"
    again = algorithm(rank=4, conv_rank=4)
    again.attach(model)
    again.load(path)
    assert (again.rank, again.conv_rank) == ("dynamic", "dynamic")


@ALGORITHMS
def test_alpha_zero_and_null_mean_the_rank(algorithm):
    for alpha in (0, None):
        network = algorithm(rank=4, alpha=alpha, conv_rank=2)
        assert (network.alpha, network.conv_alpha) == (4, 2)
    assert algorithm(rank=4, alpha=1, conv_rank=2).conv_alpha == 1


def test_loha_is_its_closed_form():
    base = nn.Conv2d(4, 6, 3)
    layer = LoHaLayer(base, rank=2, alpha=3.0)
    perturb(layer)
    expected = torch.empty(6, 36)
    a, b, c, d = layer.hada_w1_a, layer.hada_w1_b, layer.hada_w2_a, layer.hada_w2_b
    for row in range(6):
        for column in range(36):
            first = sum(a[row, r] * b[r, column] for r in range(2))
            second = sum(c[row, r] * d[r, column] for r in range(2))
            expected[row, column] = 1.5 * first * second
    assert torch.allclose(layer.delta_weight(), expected.view(6, 4, 3, 3), atol=1e-6)


def test_lohas_recomputed_backward_is_autograds():
    layer = LoHaLayer(nn.Linear(5, 7), rank=3, alpha=2.0)
    perturb(layer)
    x = torch.randn(4, 5)
    layer(x).square().sum().backward()
    ours = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    a, b, c, d = layer.parameters()
    weight = (a @ b) * (c @ d) * layer.scale
    nn.functional.linear(x, weight).square().sum().backward()
    theirs = [p.grad for p in layer.parameters()]
    assert all(
        torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in zip(ours, theirs, strict=True)
    )


def test_a_loha_file_says_what_it_is(tmp_path):
    model, network = attached(LoHa)
    path = tmp_path / "loha.safetensors"
    network.save(path, dtype=torch.float16, metadata=network.describe(model))
    with safe_open(path, framework="pt") as file:
        suffixes = {key.partition(".")[2] for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert suffixes == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert '"algo": "loha"' in metadata["ss_network_args"]
