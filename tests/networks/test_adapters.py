"""What holds for every adapter: no effect at first, merged as attached, files, ranks by size."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors import safe_open
from torch import nn

from modules.batch import Batch, DenoiserInputs
from networks.base import Adapter
from networks.loha import LoHa, LoHaLayer
from networks.lokr import LoKr, LoKrLayer
from networks.lora import LoRA, LoRALayer

EVERYTHING = ("unet", "text_encoders")
PLAIN = {
    "lora": (LoRA, {}),
    "lora-rs": (LoRA, {"rank_stabilized": True}),
    "loha": (LoHa, {}),
    "loha-rs": (LoHa, {"rank_stabilized": True}),
    "lokr": (LoKr, {"factor": 4}),
    "lokr-whole": (LoKr, {"factor": 4, "rank": 100, "conv_rank": 100}),
    "lokr-both": (LoKr, {"factor": 8, "rank": 2, "conv_rank": 1, "decompose_both": True}),
}
DECOMPOSED = {
    f"{name}-{axis}": (PLAIN[name][0], {**PLAIN[name][1], "dora": axis})
    for name in ("lora", "loha", "lokr")
    for axis in ("input", "output")
}
VARIANTS = {**PLAIN, **DECOMPOSED}
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


def make(variant: str, **options) -> Adapter:
    algorithm, own = VARIANTS[variant]
    common = {"rank": 3, "alpha": 2, "conv_rank": 2, "targets": EVERYTHING}
    return algorithm(**{**common, **own, **options})


def attached(variant: str, **options):
    model = tiny.make_sd()
    network = make(variant, **options)
    network.attach(model)
    return model, network


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


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "lora-rs"])
def test_files_are_read_back_whatever_the_settings_of_the_reader(variant, tmp_path):
    model, first = attached(variant)
    perturb(first)
    expected = outputs(model)
    path = tmp_path / "adapter.safetensors"
    first.save(path, dtype=torch.float32, metadata=first.describe(model))
    first.detach()
    second = type(first)(rank=7, conv_rank=1, targets=EVERYTHING)
    second.attach(model)
    second.load(path)
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(model), strict=True))
    for name, layer in second.layers.items():
        original = first.layers[name]
        assert (layer.rank, layer.scale) == (original.rank, original.scale)
        assert layer.dora_axis == original.dora_axis
        assert torch.equal(layer.alpha, original.alpha)
    other = LoHa if type(first) is LoRA else LoRA
    third = other(rank=3, conv_rank=2, targets=EVERYTHING)
    third.attach(model)
    with pytest.raises(ValueError, match=f"is no {other.__name__} of this layer"):
        third.load(path)


@EVERY_VARIANT
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=["fp16", "bf16"]
)
def test_a_files_rounding_hardly_changes_the_effect(variant, dtype, tolerance, tmp_path):
    model, first = attached(variant)
    if variant.startswith("lokr"):  # whose factors start at other sizes than others'
        perturb(first, scale=0.1)
    else:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in first.named_parameters():
                if "dora_scale" in name:
                    parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
                else:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    plain, expected = outputs(tiny.make_sd()), outputs(model)
    path = tmp_path / "adapter.safetensors"
    first.save(path, dtype=dtype, metadata={})
    first.detach()
    second = make(variant)
    second.attach(model)
    second.load(path)
    for a, b, base in zip(expected, outputs(model), plain, strict=True):
        assert (a - b).norm() < tolerance * (a - base).norm()


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


@pytest.mark.parametrize(
    ("variant", "module", "keys", "args"),
    [
        ("lora-rs", "networks.lora", "lora_down.weight lora_up.weight", {"rs_lora": "True"}),
        ("loha", "lycoris.kohya", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", {"algo": "loha"}),
        ("lokr", "lycoris.kohya", "lokr_w1 lokr_w2 lokr_w2_a lokr_w2_b", {"factor": "4"}),
        ("lokr-whole", "lycoris.kohya", "lokr_w1 lokr_w2", {"algo": "lokr"}),
        (
            "lokr-both",
            "lycoris.kohya",
            "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
            {"decompose_both": "True", "conv_dim": "1", "conv_alpha": "2"},
        ),
        (
            "lora-input",
            "lycoris.kohya",
            "dora_scale lora_down.weight lora_up.weight",
            {"algo": "locon", "dora_wd": "True", "wd_on_output": "False"},
        ),
        (
            "lokr-output",
            "lycoris.kohya",
            "dora_scale lokr_w1 lokr_w2 lokr_w2_a lokr_w2_b",
            {"algo": "lokr", "wd_on_output": "True"},
        ),
    ],
)
def test_a_file_says_what_it_is(variant, module, keys, args, tmp_path):
    model, network = attached(variant)
    path = tmp_path / "adapter.safetensors"
    network.save(path, dtype=torch.float16, metadata=network.describe(model))
    with safe_open(path, framework="pt") as file:
        found = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {key.partition(".")[2] for key in found} == {*keys.split(), "alpha"}
    for key, dtype in found.items():
        if key.endswith("dora_scale"):
            assert dtype == "F32"
        elif not key.endswith("alpha"):
            assert dtype == "F16"
    assert metadata["ss_network_module"] == module
    given = json.loads(metadata["ss_network_args"])
    assert {key: given[key] for key in args} == args
    assert metadata["ss_network_dim"] == str(network.rank)


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
