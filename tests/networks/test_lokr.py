"""LoKr: the Kronecker product, which factors are whole, files of other programs."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch
from probes import outputs, perturb
from torch import nn

from networks.lokr import LoKr, LoKrLayer, factorize, kron


def test_the_product_is_torchs():
    first, second = torch.randn(3, 4), torch.randn(2, 5)
    assert torch.equal(kron(first, second), torch.kron(first, second))
    kernels = torch.randn(2, 5, 3, 3)
    expected = torch.kron(first[..., None, None], kernels)
    assert torch.equal(kron(first, kernels), expected)


def test_it_is_its_closed_form():
    layer = LoKrLayer(nn.Conv2d(6, 8, 3), rank=1, alpha=0.5, factor=2)
    perturb(layer)
    w1, a, b = layer.lokr_w1, layer.lokr_w2_a, layer.lokr_w2_b.view(1, 3, 3, 3)
    delta = layer.delta_weight()
    for row in range(8):
        for column in range(6):
            expected = 0.5 * w1[row // 4, column // 3] * a[row % 4, 0] * b[0, column % 3]
            assert torch.allclose(delta[row, column], expected)


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (320, 8, (8, 40)),
        (1280, 4, (4, 320)),
        (16, 8, (2, 8)),  # the smaller number comes first
        (250, 8, (5, 50)),  # 8 is no divisor
        (127, 16, (1, 127)),
        (360, 7, (6, 60)),
        (4, 16, (2, 2)),
    ],
)
def test_sizes_are_factorized_as_lycoris_does(size, factor, expected):
    assert factorize(size, factor) == expected


def test_every_size_is_factorized_as_lycoris_does():
    from lycoris.functional.general import factorization

    for size in range(2, 400):
        for factor in range(2, 33):
            assert factorize(size, factor) == factorization(size, factor), (size, factor)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"rank": 9}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
        ({"rank": 10}, {"lokr_w1", "lokr_w2"}),
        ({"rank": 3, "decompose_both": True}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
        ({"rank": 4, "decompose_both": True}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    ],
)
def test_a_factor_is_whole_where_low_rank_saves_little(options, names):
    layer = LoKrLayer(nn.Linear(160, 160), alpha=1.0, factor=8, **options)
    assert {name for name, _ in layer.named_parameters()} == names
    rank = options["rank"]
    whole = names == {"lokr_w1", "lokr_w2"}
    assert layer.is_whole == whole
    assert layer.scale == (1.0 if whole else 1.0 / rank)
    assert layer.alpha == (rank if whole else 1.0)
    assert not layer.delta_weight().any()


def test_the_forward_keeps_small_activations():
    """What is kept for the backward pass is smaller than the layer's output."""
    layer = LoKrLayer(nn.Linear(320, 320), rank=4, alpha=1.0, factor=8)
    x, kept = torch.randn(2, 512, 320), []
    inside = {x.untyped_storage().data_ptr()}
    inside |= {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in inside:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert sum(kept) < 0.6 * x.numel()


def test_where_alpha_has_no_effect_it_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        LoKr(rank=100, alpha=1.0).attach(tiny.make_sd())
    (record,) = caplog.records
    assert "alpha and rank_stabilized have no effect there" in record.getMessage()
    caplog.clear()
    LoKr(rank=100).attach(tiny.make_sd())
    assert not caplog.records


def test_a_file_with_other_factors_is_read_and_one_for_other_sizes_is_not(tmp_path):
    model = tiny.make_sd()
    first = LoKr(rank=1, conv_rank=1, factor=2, decompose_both=True)
    first.attach(model)
    perturb(first)
    expected = outputs(model)[1]
    path = tmp_path / "lokr.safetensors"
    first.save(path, dtype=torch.float32, metadata={})
    first.detach()
    second = LoKr(rank=8, conv_rank=8, factor=16)
    second.attach(model)
    second.load(path)
    assert torch.equal(outputs(model)[1], expected)
    second.detach()
    name, layer = next(iter(first.layers.items()))
    layer.lokr_w2 = nn.Parameter(torch.zeros(3, 3))
    layer.lokr_w2_a = layer.lokr_w2_b = None
    first.save(path, dtype=torch.float32, metadata={})
    with pytest.raises(ValueError, match=f"{name} is no LoKr of this layer: it is for a weight of"):
        second.load(path)


def test_a_file_of_another_factor_keeps_its_scale():
    """With the usual factor of 8, rank 4 would make whole matrices, which have no scale."""
    base = nn.Linear(64, 16)
    layer = LoKrLayer(base, rank=4, alpha=1.0, factor=4)
    assert layer.scale == 0.25
    again = LoKrLayer.from_shapes(base, layer.state_dict())
    assert not again.is_whole
    assert again.scale == 0.25
