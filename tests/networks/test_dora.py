"""DoRA: magnitudes of rows or columns, apart from the direction of any adapter."""

from __future__ import annotations

import pytest
import tiny
import torch
from probes import outputs, perturb
from torch import nn

from networks.dora import (
    decompose,
    decomposed_addition,
    magnitudes,
    take_over,
    weight_change,
)
from networks.loha import LoHaLayer
from networks.lokr import LoKrLayer
from networks.lora import LoRA, LoRALayer

AXES = pytest.mark.parametrize("axis", ["input", "output"])
LAYERS = pytest.mark.parametrize("layer_class", [LoRALayer, LoHaLayer, LoKrLayer])
BASES = pytest.mark.parametrize(
    "base",
    [
        nn.Linear(6, 12),
        nn.Linear(6, 12, bias=False),
        nn.Conv2d(6, 12, 1),
        nn.Conv2d(6, 12, 3, padding=1),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
    ],
    ids=["linear", "no_bias", "conv1x1", "conv3x3", "strided"],
)


def decomposed(layer_class, base, axis):
    layer = layer_class(base, rank=2, alpha=1.5)
    decompose(layer, base.weight, axis)
    perturb(layer)
    with torch.no_grad():
        layer.dora_scale.copy_(magnitudes(base.weight, axis) * 1.2)
    return layer


def input_for(base: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (2, 6, 8, 8) if isinstance(base, nn.Conv2d) else (2, 5, 6)
    return torch.randn(size, generator=generator)


def in_closed_form(layer, weight, axis) -> torch.Tensor:
    """The paper's formula, one row or column at a time."""
    changed = weight + layer.delta_weight()
    result, m = torch.empty_like(changed), layer.dora_scale.flatten()
    for number in range(len(m)):
        own = (slice(None), number) if axis == "input" else number
        result[own] = m[number] * changed[own] / changed[own].square().sum().sqrt()
    return result


@AXES
@LAYERS
@BASES
@torch.no_grad()
def test_it_computes_with_the_papers_weight(layer_class, base, axis):
    layer = decomposed(layer_class, base, axis)
    wanted = in_closed_form(layer, base.weight, axis)
    assert torch.allclose(base.weight + weight_change(layer, base.weight), wanted, atol=1e-6)
    x = input_for(base)
    plain = base(x)
    beside = plain + decomposed_addition(layer, base, x, plain)
    original = base.weight.clone()
    base.weight.copy_(wanted)
    expected = base(x)
    base.weight.copy_(original)
    assert (expected - plain).abs().max() > 1e-2
    assert torch.allclose(beside, expected, atol=1e-5)


@AXES
@BASES
def test_gradients_are_those_of_the_formula_with_a_constant_norm(base, axis):
    layer = decomposed(LoRALayer, base, axis)
    x = input_for(base).requires_grad_()
    plain = base(x)
    (plain + decomposed_addition(layer, base, x, plain)).square().sum().backward()
    ours = [x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    changed = base.weight.detach() + layer.delta_weight()
    norms = magnitudes(changed, axis).detach()
    weight = layer.dora_scale * changed / norms
    result = torch.func.functional_call(base, {"weight": weight}, (x,))
    result.square().sum().backward()
    theirs = [x.grad, *(p.grad for p in layer.parameters())]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max())


@AXES
def test_shapes_are_those_of_the_field_and_tell_the_axis(axis):
    for base in (nn.Linear(6, 12), nn.Linear(8, 8), nn.Conv2d(6, 12, 3)):
        found = magnitudes(base.weight, axis)
        outputs, inputs, *kernel = base.weight.shape
        ones = [1 for _ in kernel]
        assert list(found.shape) == [*((1, inputs) if axis == "input" else (outputs, 1)), *ones]
        assert found.dtype == torch.float32
        layer = LoRALayer(base, rank=2, alpha=1.0)
        take_over(layer, found, base.weight)
        assert layer.dora_axis == axis
        rows = take_over(LoRALayer(base, rank=2, alpha=1.0), torch.zeros(outputs), base.weight)
        assert list(rows.shape) == [outputs, 1, *ones]
        with pytest.raises(ValueError, match=r"dora_scale has shape \(5, 1.*\), which is no row"):
            take_over(layer, torch.zeros(5), base.weight)


@AXES
def test_a_trial_without_weights_reads_files_without_a_word(axis, tmp_path, recwarn, caplog):
    model, network = tiny.make_sd(), LoRA(rank=2, dora=axis)
    network.attach(model)
    network.save(tmp_path / "dora.safetensors", dtype=torch.float16, metadata={})
    network.detach()
    model.denoiser.to("meta")
    again = LoRA(rank=2, dora=axis)
    again.attach(model)
    again.load(tmp_path / "dora.safetensors")
    assert {p.device.type for p in again.parameters()} == {"meta"}
    assert not [str(w.message) for w in recwarn if "meta" in str(w.message)]
    assert not caplog.records


@AXES
def test_a_base_in_lower_precision_starts_within_its_rounding(axis):
    plain, model = tiny.make_sd(), tiny.make_sd()
    exact = outputs(plain)[1]
    LoRA(rank=2, dora=axis).attach(model)
    for one in (plain, model):
        one.denoiser.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before, fresh = outputs(plain)[1].float(), outputs(model)[1].float()
    assert 0 < (fresh - before).norm() < 1.5 * (before - exact).norm() < 0.03 * exact.norm()


@AXES
def test_other_adapters_of_the_layer_are_left_as_they_are(axis):
    """Each change is that of the base's own weight, whatever the order."""

    def run(*names):
        model = tiny.make_sd()
        networks = {"dora": LoRA(rank=2, dora=axis), "lora": LoRA(rank=3)}
        for name in names:
            networks[name].attach(model)
            perturb(networks[name], scale=0.1)
            if name == "dora":
                with torch.no_grad():
                    for key, base in networks[name]._base.items():
                        layer = networks[name].layers[key]
                        layer.dora_scale.copy_(magnitudes(base.weight, axis) * 1.1)
        return outputs(model)[1]

    first, second = run("dora", "lora"), run("lora", "dora")
    assert torch.allclose(first, second, atol=1e-5)
    assert (first - run("dora")).abs().max() > 1e-3
    assert (first - run("lora")).abs().max() > 1e-3


def test_a_weight_of_zeros_stays_finite():
    base = nn.Linear(4, 4)
    with torch.no_grad():
        base.weight[1] = 0.0
    layer = LoRALayer(base, rank=2, alpha=2.0)
    decompose(layer, base.weight, "output")
    x = torch.randn(3, 4)
    plain = base(x)
    assert torch.equal(decomposed_addition(layer, base, x, plain), torch.zeros(3, 4))


def test_a_file_decides_whether_it_is_one(tmp_path, caplog):
    model = tiny.make_sd()
    networks = {dora: LoRA(rank=2, dora=dora) for dora in (None, "input", "output")}
    for dora, network in networks.items():
        network.attach(model)
        perturb(network)
        network.save(tmp_path / f"{dora}.safetensors", dtype=torch.float32, metadata={})
        network.detach()
    for dora, reader in (("input", None), (None, "output"), ("output", "input")):
        network = LoRA(rank=2, dora=reader)
        network.attach(model)
        caplog.clear()
        network.load(tmp_path / f"{dora}.safetensors")
        assert {layer.dora_axis for layer in network.layers.values()} == {dora}
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.endswith(f"has dora {dora or 'null'}, which is taken")
        assert network.undecayed == ("*.dora_scale",)
