"""Ranks and alphas by pattern, rsLoRA, LoRA+, and one alpha of a component in files."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors.torch import load_file

from modules.optimizer import make_groups
from networks.closed_forms import direction_of
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA

EVERYTHING = ("unet", "text_encoders")
BLOCKS = {
    "unet.up_blocks": {"rank": 2, "conv_rank": 3, "conv_alpha": 6},
    "unet.up_blocks.1.attentions": {"rank": 5},
    "unet.*.attn2": {"alpha": 1},
    "text_encoders": {"rank": 1, "alpha": 3},
}


def attached(algorithm=LoRA, **options):
    model = tiny.make_sd()
    network = algorithm(**{"rank": 4, "alpha": 2, "targets": EVERYTHING, **options})
    network.attach(model)
    return model, network


def by_path(network):
    return {network._paths[name]: layer for name, layer in network.layers.items()}


def test_the_longest_pattern_wins_key_by_key():
    _, network = attached(conv_rank=2, blocks=BLOCKS)
    layers = by_path(network)
    expected = {
        "unet.down_blocks.0.attentions.0.proj_in": (4, 2),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q": (4, 1),
        "unet.down_blocks.0.resnets.0.conv1": (2, 2),
        "unet.up_blocks.0.resnets.0.conv1": (3, 6),
        "unet.up_blocks.0.resnets.0.time_emb_proj": (2, 2),
        "unet.up_blocks.1.attentions.0.proj_in": (5, 2),
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q": (5, 1),
        "text_encoders.0.encoder.layers.0.mlp.fc1": (1, 3),
    }
    assert {p: (layers[p].rank, float(layers[p].alpha)) for p in expected} == expected


def test_patterns_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"^blocks: the pattern 'unet.upblocks' matches no module"):
        attached(blocks={"unet.upblocks": {"rank": 2}})
    with pytest.raises(ValueError, match="blocks: the pattern 'text_encoders' matches no module"):
        attached(targets=("unet",), blocks={"text_encoders": {"rank": 2}})
    with pytest.raises(ValueError, match=r"blocks\.unet\.rank: 0 is not a rank"):
        LoRA(blocks={"unet": {"rank": 0}})
    with pytest.raises(ValueError, match=r"blocks\.unet\.conv_rank: has no effect without conv_"):
        LoRA(blocks={"unet": {"conv_rank": 4}})


@pytest.mark.parametrize("algorithm", [LoRA, LoHa, LoKr])
@pytest.mark.parametrize("options", [{"blocks": BLOCKS}, {"rank_stabilized": True}])
def test_a_file_has_one_alpha_of_each_component_and_resumes_with_the_configs(
    tmp_path, options, algorithm
):
    model, first = attached(algorithm, conv_rank=3, conv_alpha=5, **options)
    perturb(first)
    expected = outputs(model)
    path = tmp_path / "blocks.safetensors"
    first.save(path, dtype=torch.float32, metadata=first.describe(model))
    tensors = load_file(path)
    for prefix in ("lora_unet", "lora_te"):
        alphas = {v.item() for k, v in tensors.items() if k.startswith(prefix) and "alpha" in k}
        assert len(alphas) == 1
    for name, layer in first.layers.items():  # what every reader computes of the file
        own = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if f"{name}." in k}
        change = direction_of(own)(own).reshape(first._base[name].weight.shape)
        assert torch.allclose(change, layer.delta_weight(), rtol=1e-4, atol=1e-6)
    first.detach()
    second = algorithm(rank=4, alpha=2, targets=EVERYTHING, conv_rank=3, conv_alpha=5, **options)
    second.attach(model)
    second.load(path)
    for name, layer in second.layers.items():
        assert (layer.rank, layer.scale) == (first.layers[name].rank, first.layers[name].scale)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(model), expected, strict=True)
    )
    second.detach()
    other = algorithm(rank=9, targets=EVERYTHING, conv_rank=1)
    other.attach(model)
    other.load(path)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(model), expected, strict=True)
    )


@pytest.mark.parametrize("algorithm", [LoRA, LoKr])
def test_rank_stabilized_scales_by_the_root(algorithm, tmp_path):
    model, network = attached(algorithm, rank=3, conv_rank=2, rank_stabilized=True)
    for layer in network.layers.values():
        if getattr(layer, "is_whole", False):
            assert layer.scale == 1.0
            continue
        assert layer.scale == pytest.approx(2 / math.sqrt(layer.rank))
        assert float(layer.alpha) == pytest.approx(2 * math.sqrt(layer.rank))
    path = tmp_path / "rs.safetensors"
    network.save(path, dtype=torch.bfloat16, metadata=network.describe(model))
    alphas = {float(v) for k, v in load_file(path).items() if k.endswith("alpha")}
    assert min(abs(alpha - 2 * math.sqrt(3)) for alpha in alphas) < 1e-6  # not rounded to bf16


def test_lora_plus_and_magnitudes_have_groups_of_their_own():
    _, network = attached(lora_plus_ratio=16, dora="input", conv_rank=2)
    rates = {"unet": 1e-4, "unet.up_blocks": 5e-5, "text_encoders": 1e-5}
    groups = make_groups(
        network.parameter_groups(),
        rates,
        components=("unet", "text_encoders.0"),
        owner="lora",
        where="",
        factors=network.rate_factors,
        undecayed=network.undecayed,
    )
    found = {group.name: (group.learning_rate, group.decays) for group in groups}
    assert found == {
        f"lora.{name}{tail}": (pytest.approx(rate * factor), tail != ".dora_scale")
        for name, rate in (("unet", 1e-4), ("unet.up_blocks", 5e-5), ("text_encoders.0", 1e-5))
        for tail, factor in (("", 1), (".lora_up", 16), (".dora_scale", 1))
    }
    parameters = [id(p) for group in groups for p in group.parameters]
    assert sorted(parameters) == sorted(id(p) for p in network.parameters())
    ups = {id(layer.lora_up.weight) for layer in network.layers.values()}
    chosen = [group for group in groups if group.name.endswith(".lora_up")]
    assert {id(p) for group in chosen for p in group.parameters} == ups
    assert LoRA().rate_factors == {}
