"""Dropout and max-norm of adapters: in training only, the same when computed again."""

from __future__ import annotations

import pytest
import tiny
import torch
from probes import outputs, perturb
from torch import nn

from modules.batch import Batch, DenoiserInputs
from networks.dropout import Dropout, drop_ranks, drop_rows
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA, LoRALayer

ALGORITHMS = pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (LoRA, {"dropout": 0.4}),
        (LoRA, {"rank_dropout": 0.4}),
        (LoRA, {"module_dropout": 0.4}),
        (LoRA, {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2, "dora": "input"}),
        (LoHa, {"rank_dropout": 0.4}),
        (LoHa, {"module_dropout": 0.4, "dora": "output"}),
        (LoKr, {"rank_dropout": 0.4, "module_dropout": 0.2}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)


def attached(algorithm, **options):
    model = tiny.make_sd()
    model.denoiser.requires_grad_(False)
    network = algorithm(rank=4, conv_rank=4, **options)
    network.attach(model)
    perturb(network, scale=0.1)
    return model, network


def predict(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    states = model.encode_prompts(Batch(captions=["a red cat", "a blue dog"]))
    inputs = DenoiserInputs(
        sample=torch.randn(2, 4, 8, 8, generator=generator).requires_grad_(),
        timestep=torch.tensor([100, 700]),
        encoder_hidden_states=states["encoder_hidden_states"].detach(),
    )
    return model.denoise(inputs)


def gradients(model, network, seed: int) -> list[torch.Tensor]:
    network.zero_grad()
    torch.manual_seed(seed)
    predict(model).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@ALGORITHMS
def test_it_is_of_training_only(algorithm, options):
    model, network = attached(algorithm, **options)
    without = {key: value for key, value in options.items() if "dropout" not in key}
    expected = outputs(attached(algorithm, **without)[0])[1]
    assert not torch.equal(outputs(model)[1], expected)
    assert not torch.equal(outputs(model)[1], outputs(model)[1])
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(outputs(model)[1], expected)
    assert torch.equal(torch.get_rng_state(), state)


@ALGORITHMS
def test_checkpointed_activations_are_computed_again_with_the_same_masks(algorithm, options):
    model, network = attached(algorithm, **options)
    model.denoiser.train()
    expected = gradients(model, network, 3)
    model.denoiser.enable_gradient_checkpointing()
    found = gradients(model, network, 3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    other = gradients(model, network, 4)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(other, expected, strict=True))


def test_values_and_ranks_are_dropped_between_down_and_up():
    layer = LoRALayer(nn.Linear(6, 5), rank=4, alpha=2.0)
    perturb(layer)
    x = torch.randn(300, 7, 6)
    layer.dropouts = Dropout(dropout=0.5)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    low = nn.functional.dropout(layer.lora_down(x) * 0.5, 0.5)
    assert torch.allclose(found, layer.lora_up(low), atol=1e-6)
    layer.dropouts = Dropout(rank_dropout=0.25)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    kept = (torch.rand(300, 1, 4) >= 0.25).float()
    assert 0.7 < kept.mean() < 0.8
    low = layer.lora_down(x) * 0.5 * kept / 0.75  # one mask for all tokens of a sample
    assert torch.allclose(found, layer.lora_up(low), atol=1e-6)


def test_masks_lie_on_the_channels():
    for size, mask in (((50, 8), (0,)), ((50, 3, 8), (1,)), ((50, 8, 3, 3), (2, 3))):
        dropped = drop_ranks(torch.ones(size), 0.5)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        if mask != (0,):  # the same at all positions, other for each sample
            assert not dropped.float().var(dim=mask).any()
        assert dropped.flatten(1).var(dim=0).all()
    for size, channels in (((50, 3, 8), 2), ((50, 8, 3, 3), 1)):
        dropped = drop_rows(torch.ones(size), 0.5).movedim(channels, 0).flatten(1)
        assert not dropped.var(dim=1).any()
        assert set(drop_rows(torch.ones(2, 400), 0.5).unique().tolist()) == {0.0, 2.0}


def test_a_dropped_layer_has_no_effect_but_has_gradients():
    model, network = attached(LoRA, module_dropout=0.999999)
    plain = outputs(tiny.make_sd())[1]
    assert torch.equal(outputs(model)[1], plain)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model, network, 0))


@pytest.mark.parametrize("algorithm", [LoRA, LoHa, LoKr])
@pytest.mark.parametrize("dora", [None, "input"])
def test_max_norm_bounds_the_change_by_its_factors_alike(algorithm, dora):
    _, network = attached(algorithm, max_norm=1.0, dora=dora)
    before = {name: layer.delta_weight().detach() for name, layer in network.layers.items()}
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
    network.max_norm = maximum = torch.stack([d.norm() for d in before.values()]).median().item()
    network.after_step()
    for name, layer in network.layers.items():
        norm = before[name].norm()
        assert layer.delta_weight().norm() <= maximum * (1 + 1e-4)
        expected = before[name] * (maximum / norm).clamp(max=1.0)
        assert torch.allclose(layer.delta_weight(), expected, atol=1e-6)
        ratios = {
            round((p / parameters[f"layers.{name}.{own}"]).mean().item(), 4)
            for own, p in layer.named_parameters()
            if own != "dora_scale"
        }
        assert len(ratios) == 1
        assert (ratios == {1.0}) == bool(norm <= maximum * (1 + 1e-4))
    if dora:
        kept = [n for n in parameters if n.endswith("dora_scale")]
        own = dict(network.named_parameters())
        assert all(torch.equal(parameters[name], own[name]) for name in kept)


def test_max_norm_leaves_alone_what_is_not_trained_or_fresh():
    _, network = attached(LoRA, max_norm=0.01)
    network.requires_grad_(False)
    before = [p.clone() for p in network.parameters()]
    network.after_step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    fresh = LoRA(rank=2, max_norm=1.0)
    fresh.attach(tiny.make_sd())
    before = [p.clone() for p in fresh.parameters()]
    fresh.after_step()
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))
