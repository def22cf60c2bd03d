"""What holds for every adapter: no effect at first, merged as attached, files, ranks by size."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors import safe_open
from torch import nn
from variants import VARIANTS, attached

from modules.batch import Batch, DenoiserInputs
from networks.loha import LoHa, LoHaLayer
from networks.lokr import LoKr, LoKrLayer
from networks.lora import LoRA, LoRALayer

EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
LAYERS = pytest.mark.parametrize(
    ("layer_class", "options"),
    [
        (LoRALayer, {}),
        (LoHaLayer, {}),
        (LoKrLayer, {"factor": 2}),
        (LoKrLayer, {"factor": 2, "rank": 1}),
        (LoKrLayer, {"factor": 3, "rank": 1, "decompose_both": True}),
    ],
    ids=["lora", "loha", "lokr-whole", "lokr-low", "lokr-both"],
)
BASES = pytest.mark.parametrize(
    "base",
    [
        nn.Linear(6, 12),
        nn.Conv2d(6, 12, 1),
        nn.Conv2d(6, 12, 3, padding=1),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
    ],
    ids=["linear", "conv1x1", "conv3x3", "strided"],
)


@EVERY_VARIANT
def test_a_fresh_adapter_changes_nothing(variant):
    before = outputs(tiny.make_sd())
    model, _ = attached(variant)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))


@EVERY_VARIANT
def test_it_has_an_effect_merges_as_attached_and_comes_off(variant):
    model, network = attached(variant, multiplier=0.5)
    before = outputs(tiny.make_sd())
    perturb(network)
    beside = outputs(model)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(beside, before, strict=True))
    network.detach()
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))
    network.merge()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(beside, outputs(model), strict=True))


@EVERY_VARIANT
def test_two_steps_move_every_tensor_and_nothing_of_the_base(variant):
    model, network = attached(variant)
    for component in model.components().values():
        component.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    base = {name: p.clone() for name, p in model.denoiser.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        predict(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert all(torch.equal(p, base[name]) for name, p in model.denoiser.state_dict().items())


def predict(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    states = model.encode_prompts(Batch(captions=["a red cat", "a blue dog"]))
    inputs = DenoiserInputs(
        sample=torch.randn(2, 4, 8, 8, generator=generator),
        timestep=torch.tensor([100, 700]),
        encoder_hidden_states=states["encoder_hidden_states"],
    )
    return model.denoise(inputs)


@LAYERS
@BASES
def test_forward_is_the_product_with_the_changed_weight(layer_class, options, base):
    layer = layer_class(base, **{"rank": 3, "alpha": 1.5, **options})
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


@pytest.mark.parametrize("algorithm", [LoRA, LoHa])
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
    for name, layer in again.layers.items():
        assert layer.rank == network.layers[name].rank


@pytest.mark.parametrize("algorithm", [LoRA, LoHa, LoKr])
def test_alpha_zero_and_null_mean_the_rank(algorithm):
    def scales(**options):
        network = algorithm(rank=1, conv_rank=1, **options)
        network.attach(tiny.make_sd())
        return {(layer.is_spatial, layer.scale) for layer in network.layers.values()}

    for alpha in (0, None):
        assert scales(alpha=alpha) == {(False, 1.0), (True, 1.0)}
    assert (True, 0.5) in scales(alpha=0.5)
    assert {(False, 0.5), (True, 0.25)} <= scales(alpha=0.5, conv_alpha=0.25)


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


def test_a_setting_of_another_algorithm_is_refused():
    from modules.component import argument_faults

    for path, key in (("networks.loha.LoHa", "dropout"), ("networks.lokr.LoKr", "lora_plus_ratio")):
        (fault,) = argument_faults("networks.x", path, {key: 0.1})
        assert f"{path} takes no argument '{key}'" in fault
    for path in ("networks.lora.LoRA", "networks.loha.LoHa", "networks.lokr.LoKr"):
        (fault,) = argument_faults("networks.x", path, {"targets": "unet"})
        assert "'unet' is not a list" in fault
        (fault,) = argument_faults("networks.x", path, {"dora": "columns"})
        assert "'columns' is not one of 'input', 'output'" in fault
        (fault,) = argument_faults("networks.x", path, {"blocks": {"unet": {"rnk": 4}}})
        assert "no such key; did you mean 'rank'?" in fault


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        (LoRA, {"dropout": 1.0}, "dropout: 1.0 is not a probability"),
        (LoHa, {"rank_dropout": -0.1}, "rank_dropout: -0.1 is not a probability"),
        (LoKr, {"module_dropout": 2.0}, "module_dropout: 2.0 is not a probability"),
        (LoRA, {"max_norm": 0.0}, "max_norm: 0.0 is not above 0"),
        (LoRA, {"lora_plus_ratio": 0.0}, "lora_plus_ratio: 0.0 is not above 0"),
        (LoKr, {"factor": -1}, "factor: -1 is not a size of 2 or more"),
        (LoRA, {"dora": "rows"}, "dora: 'rows' is not one of input, output"),
    ],
)
def test_impossible_settings_are_refused(algorithm, options, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**options)
