"""Files of every adapter: read back as written, hardly changed by rounding, saying what it is."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors import safe_open
from variants import EVERYTHING, VARIANTS, attached, make

from modules.safetensors_header import hash_tensors
from networks.files import read_metadata
from networks.loha import LoHa
from networks.lora import LoRA


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.endswith("-rs")])
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
        assert layer.scale == original.scale
        assert layer.dora_axis == original.dora_axis
        if not layer.is_whole:  # else it has no rank, and no use for an alpha
            assert layer.rank == original.rank
            assert torch.equal(layer.alpha, original.alpha)
    kind, other = type(first).__name__, LoHa if type(first) is LoRA else LoRA
    third = other(rank=3, conv_rank=2, targets=EVERYTHING)
    third.attach(model)
    with pytest.raises(ValueError, match=f"is a {kind}, not a {other.__name__}; write `module: "):
        third.load(path)


@pytest.mark.parametrize("variant", ["lora", "loha", "lokr", "lora-input", "lora-output"])
def test_a_files_rounding_hardly_changes_the_effect(variant, tmp_path):
    model, first = attached(variant)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "dora_scale" in name:
                parameter.mul_(1 + 0.01 * noise)
            else:
                parameter.add_(0.05 * noise)
    plain, expected = outputs(tiny.make_sd()), outputs(model)
    first.detach()
    second = make(variant)
    second.attach(model)
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        first.save(tmp_path / "adapter.safetensors", dtype=dtype, metadata={})
        second.load(tmp_path / "adapter.safetensors")
        for a, b, base in zip(expected, outputs(model), plain, strict=True):
            assert 0 < (a - b).norm() < tolerance * (a - base).norm()


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


def test_files_hold_their_own_hashes(tmp_path):
    _, network = attached("lora")
    path = tmp_path / "adapter.safetensors"
    hashes = []
    for dtype in (torch.float32, torch.float32, torch.float16):
        told = {"modelspec.sai_model_spec": "1.0.1"} if hashes else {}
        network.save(path, dtype=dtype, metadata={"ss_steps": str(len(hashes)), **told})
        metadata = read_metadata(path)
        assert metadata["sshs_model_hash"] == hash_tensors(path)  # after the cast
        expected = f"0x{metadata['sshs_model_hash']}" if told else None
        assert metadata.get("modelspec.hash_sha256") == expected
        hashes.append(metadata["sshs_model_hash"])
    assert hashes[0] == hashes[1] != hashes[2]
