"""A written file is read again: what is right passes, and every kind of damage is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES, NETWORKS
from probes import perturb
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from variants import DECOMPOSED, VARIANTS, attached

from modules.component import build
from modules.savers import suffixes_of
from networks.controlnet import ControlNet
from networks.dora import magnitudes
from networks.layer import AdapterLayer
from networks.lora import LoRA

DTYPES = {
    "fp32": (torch.float32, 1e-5),
    "fp16": (torch.float16, 2e-3),
    "bf16": (torch.bfloat16, 2e-2),
}
LOOSEST_FIRST = pytest.mark.parametrize(
    "dtype", ["bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "fp32"))]
)
COMBINATIONS = [
    (family, name)
    for family in FAMILIES
    for name in NETWORKS
    if name not in FAMILIES[family].refuses
]


@pytest.fixture(scope="module")
def models():
    """A model of each family, made once."""
    made: dict = {}

    def make(family: str):
        if family not in made:
            made[family] = FAMILIES[family].make()
        return made[family]

    return make


def disturb(network) -> None:
    """Weights as if it had been trained: DoRAs' magnitudes stay near those of the base."""
    perturb(network, scale=0.1)
    with torch.no_grad():
        for name, layer in getattr(network, "layers", {}).items():
            if layer.dora_scale is not None:
                axis, weight = layer.dora_axis, network._base[name].weight
                layer.dora_scale.copy_(magnitudes(weight, axis) * 1.1)


def keys_of(path: Path) -> int:
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    total = 0
    for file in files:
        if file.suffix == ".safetensors":
            total += len(load_file(file))
            continue
        for value in torch.load(file, weights_only=True).values():
            if isinstance(value, torch.Tensor):
                total += 1
            elif isinstance(value, tuple):
                total += sum(len(tensors) for tensors in value)
    return total


@pytest.mark.parametrize(("family", "name"), COMBINATIONS)
def test_every_network_of_every_family_passes_in_every_precision(models, family, name, tmp_path):
    section = NETWORKS[name]
    network = build(section["module"], section.get("args", {}))
    model = models(family)
    network.attach(model)
    try:
        disturb(network)
        for label, (dtype, tolerance) in DTYPES.items():
            for ending in suffixes_of(network):
                path = tmp_path / (label + ending)
                network.save(path, dtype=dtype, metadata={})
                verified = network.verify(path, dtype=dtype)
                assert verified.keys == keys_of(path) > 0
                assert verified.max_error <= tolerance
                if dtype != torch.float32:
                    assert verified.max_error > 0
    finally:
        network.detach()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_adapter_passes_fresh_and_trained(variant, tmp_path):
    _, network = attached(variant)
    path = tmp_path / "adapter.safetensors"
    network.save(path, dtype=torch.float16, metadata={})
    fresh = network.verify(path, dtype=torch.float16)
    assert fresh.max_error < 1e-3
    disturb(network)
    for dtype, tolerance in DTYPES.values():
        network.save(path, dtype=dtype, metadata={})
        verified = network.verify(path, dtype=dtype)
        assert str(verified).startswith(f"verified: {fresh.keys}/{fresh.keys} keys, max error ")
        assert verified.max_error < tolerance
        assert verified.max_error > 0 or dtype == torch.float32


@pytest.mark.parametrize("variant", ["lora", "loha", "lora-input"])
def test_small_changes_are_rounded_and_not_refused(variant, tmp_path):
    """At the beginning `up` may be below fp16's smallest numbers; the file is what it can be."""
    _, network = attached(variant)
    path = tmp_path / "adapter.safetensors"
    for size in (1e-3, 1e-6, 1e-8):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith(("lora_up.weight", "hada_w2_a")):
                    parameter.normal_(std=size)
        for dtype, tolerance in DTYPES.values():
            network.save(path, dtype=dtype, metadata={})
            error = network.verify(path, dtype=dtype).max_error
            if dtype == torch.float16 and size < 1e-7:
                assert error > 0.5 or variant == "lora-input"  # there it is lost in W' - W
            elif dtype != torch.float16:
                assert error < tolerance


LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def _renamed(tensors, old: str, new: str):
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


def _with(tensors, key: str, change):
    return {**tensors, key: change(tensors[key])}


def _one_number(tensor):
    changed = tensor.clone()
    changed.view(-1)[1] *= 1.2
    return changed


DAMAGES = {
    "a layer is missing": (
        lambda t: {key: value for key, value in t.items() if not key.startswith(LAYER + ".")},
        f"{LAYER}: was to be written, and is missing",
    ),
    "a key is missing": (
        lambda t: {key: value for key, value in t.items() if key != f"{LAYER}.alpha"},
        f"{LAYER}: has lora_down.weight, lora_up.weight; readers want alpha, lora_down.weight",
    ),
    "a text encoder's name is the flat one": (
        lambda t: _renamed(t, "lora_te_text_model_", "lora_te_"),
        "lora_te_text_model_encoder_layers_0_self_attn_k_proj: was to be written, and is missing",
    ),
    "a suffix is peft's": (
        lambda t: _renamed(t, "lora_up", "lora_B"),
        "readers want alpha, lora_down.weight, lora_up.weight",
    ),
    "one more layer": (
        lambda t: {**t, "lora_unet_extra.alpha": torch.tensor(1.0)},
        "lora_unet_extra: was written, and should not be there",
    ),
    "another alpha": (
        lambda t: _with(t, f"{TEXT}.alpha", lambda x: x * 2),
        f"lora_te_text_model_encoder_layers_0_mlp_fc2.alpha: is 2 where {TEXT} has 4",
    ),
    "every alpha": (
        lambda t: {k: v * 2 if k.endswith("alpha") else v for k, v in t.items()},
        "the whole differs by 100.0% of it",
    ),
    "an alpha with a dimension": (
        lambda t: _with(t, f"{LAYER}.alpha", lambda x: x[None]),
        f"{LAYER}: alpha has shape (1,), readers want ()",
    ),
    "a flat convolution": (
        lambda t: _with(t, f"{LAYER}.lora_up.weight", lambda x: x.flatten(1)),
        f"{LAYER}: lora_up.weight has shape",
    ),
    "one number": (
        lambda t: _with(t, f"{LAYER}.lora_up.weight", _one_number),
        f"{LAYER}.lora_up.weight: is ",
    ),
    "rows in another order": (
        lambda t: _with(t, f"{TEXT}.lora_up.weight", lambda x: x.flip(0).contiguous()),
        f"{TEXT}.lora_up.weight: is ",
    ),
    "not a number": (
        lambda t: _with(t, f"{LAYER}.lora_down.weight", lambda x: x * float("nan")),
        f"{LAYER}.lora_down.weight: is not finite in the file",
    ),
    "another dtype": (
        lambda t: _with(t, f"{LAYER}.lora_up.weight", lambda x: x.double()),
        f"{LAYER}.lora_up.weight: is torch.float64 in the file, not torch.",
    ),
}


@LOOSEST_FIRST
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, dtype, tmp_path):
    change, message = DAMAGES[damage]
    kind = DTYPES[dtype][0]
    _, network = attached("lora", alpha=2)
    disturb(network)
    path = tmp_path / "lora.safetensors"
    network.save(path, dtype=kind, metadata={})
    save_file(change(load_file(path)), path)
    with pytest.raises(ValueError, match=r"lora_\w+") as raised:
        network.verify(path, dtype=kind)
    assert message in str(raised.value)


@LOOSEST_FIRST
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_counts(variant, dtype, tmp_path):
    """A number of any tensor of any adapter that is off by more than rounding is found."""
    kind = DTYPES[dtype][0]
    _, network = attached(variant)
    disturb(network)
    path = tmp_path / "adapter.safetensors"
    network.save(path, dtype=kind, metadata={})
    whole = load_file(path)
    layer = next(n for n in network.layers if "resnets_0_conv1" in n)
    own = [key for key in whole if key.startswith(f"{layer}.") and not key.endswith("alpha")]
    assert len(own) >= 2
    for key in own:
        save_file(_with(whole, key, _one_number), path)
        with pytest.raises(ValueError, match=rf"^{re.escape(key)}: is \S+ in the file where"):
            network.verify(path, dtype=kind)


def test_a_truncated_file_is_refused(tmp_path):
    _, network = attached("lora")
    path = tmp_path / "lora.safetensors"
    network.save(path, dtype=torch.float16, metadata={})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Exception, match="file not fully covered"):
        network.verify(path, dtype=torch.float16)


def test_beyond_fp16_is_said_with_the_way_out(tmp_path):
    _, network = attached("lora")
    with torch.no_grad():
        network.layers[LAYER].lora_up.weight.fill_(7e4)
    path = tmp_path / "lora.safetensors"
    network.save(path, dtype=torch.float16, metadata={})
    with pytest.raises(ValueError, match=r"not finite in the file; fp16 ends at 65504, write save"):
        network.verify(path, dtype=torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        network.save(path, dtype=dtype, metadata={})
        network.verify(path, dtype=dtype)


@pytest.mark.parametrize("variant", ["lora", "loha", "lokr", "lokr-whole", *DECOMPOSED])
def test_the_tolerance_grows_only_with_rounding(variant, tmp_path):
    """What was written in fp16 is no fp32 file: the bound is that of the file's own numbers."""
    _, network = attached(variant)
    disturb(network)
    path = tmp_path / "adapter.safetensors"
    network.save(path, dtype=torch.float16, metadata={})
    save_file({key: tensor.float() for key, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="was trained"):
        network.verify(path, dtype=torch.float32)


def test_a_layer_that_no_reader_knows_is_refused_at_the_start(models):
    model = models("sdxl")
    network = LoRA(targets=("text_encoders.1.text_projection",))
    with pytest.raises(ValueError, match=r"projection' would be lora_te2_text_projection in the"):
        network.attach(model)


class OwnLayer(AdapterLayer):
    """A diagonal change: a kind that nobody's rules know."""

    def __init__(self, base, *, rank, alpha):
        super().__init__(base, rank=rank, alpha=alpha)
        self.diagonal = torch.nn.Parameter(torch.zeros(base.weight.shape[0]))

    def forward(self, x):
        return x[..., :1] * self.diagonal


class Own(LoRA):
    layer_class = OwnLayer


def test_an_adapter_of_ones_own_is_compared_tensor_by_tensor(models, tmp_path):
    network = Own(rank=1, targets=("text_encoders",))
    network.attach(models("sd1"))
    perturb(network)
    path = tmp_path / "own.safetensors"
    network.save(path, dtype=torch.float16, metadata={})
    assert network.verify(path, dtype=torch.float16).keys == 2 * len(network.layers)
    tensors = load_file(path)
    save_file(_with(tensors, f"{TEXT}.diagonal", _one_number), path)
    with pytest.raises(ValueError, match=rf"^{TEXT}\.diagonal: is "):
        network.verify(path, dtype=torch.float16)
    network.detach()


def test_damage_to_other_networks_is_named(models, tmp_path):
    model = models("sd1")
    for name in ("pfg", "textual_inversion", "controlnet", "hypernetwork"):
        section = NETWORKS[name]
        network = build(section["module"], section.get("args", {}))
        network.attach(model)
        perturb(network, scale=0.1)
        for ending in suffixes_of(network):
            path = tmp_path / (name + ending)
            network.save(path, dtype=torch.bfloat16, metadata={})
            file = next(path.glob("*.safetensors")) if path.is_dir() else path
            if file.suffix == ".safetensors":
                whole = load_file(file)
                key = next(iter(whole))
                save_file(_with(whole, key, _one_number), file)
            else:
                content = torch.load(file, weights_only=True)
                key = next(iter(content))
                if isinstance(key, int):
                    key = "linear.0.weight"
                    _one_number_in_place(content[next(iter(content))][1][key])
                else:
                    content[key] = _one_number(content[key])
                torch.save(content, file)
            with pytest.raises(ValueError, match=rf"{key}: is \S+ in the file where \S+ was train"):
                network.verify(path, dtype=torch.bfloat16)
        network.detach()
    config = tmp_path / "controlnet" / "config.json"
    config.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: is of UNet2DConditionModel"):
        ControlNet().verify(config.parent, dtype=torch.float32)


def _one_number_in_place(tensor) -> None:
    tensor.view(-1)[1] *= 1.2


def test_only_the_file_is_asked(tmp_path):
    """Tensors in memory play no part: a file of other weights fails though the keys agree."""
    _, network = attached("lora")
    disturb(network)
    path = tmp_path / "lora.safetensors"
    network.save(path, dtype=torch.float32, metadata={})
    with torch.no_grad():
        network.layers[LAYER].lora_up.weight.mul_(1.01)
    with pytest.raises(ValueError, match=rf"^{LAYER}\.lora_up.weight: is .+ by 1\.0% of it"):
        network.verify(path, dtype=torch.float32)
    with safe_open(path, framework="pt") as file:
        assert len(file.keys()) == 3 * len(network.layers)


def test_a_layer_beside_the_targets_may_have_any_name(models, tmp_path):
    """It came from a file of another program, and is written as it was read."""
    model = models("sdxl")
    name, width = "lora_te2_text_projection", 48
    path = tmp_path / "lora.safetensors"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, width),
        f"{name}.lora_up.weight": torch.randn(24, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path)
    network = LoRA(rank=2, targets=("unet.mid_block",))
    network.attach(model)
    network.load(path)
    network.save(path, dtype=torch.float16, metadata={})
    assert network.verify(path, dtype=torch.float16).keys == 3 * len(network.layers)
    assert f"{name}.alpha" in load_file(path)
    network.detach()
