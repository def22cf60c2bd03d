"""Outputs of UNet and text encoders: other programs compute from our files what we do, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from families import FAMILIES
from peers import (
    ADAPTERS,
    DTYPES,
    NOT_FOR_LYCORIS,
    apply_lycoris,
    kinds_of,
    load_in_diffusers,
    make_adapter,
    make_lycoris,
    randomise,
    write_out,
)
from probes import outputs
from safetensors.torch import load_file, save_file

from networks.keys import kohya_name

TOLERANCE = 1e-5
READ_BY_LYCORIS = [name for name in ADAPTERS if name not in NOT_FOR_LYCORIS]
OF_LYCORIS = {
    "locon": ("LoConModule", {"alpha": 1}, "locon"),
    "locon-rs": ("LoConModule", {"alpha": 1, "rs_lora": True}, "locon"),
    "locon-scalar": ("LoConModule", {"use_scalar": True}, "locon"),
    "locon-dora": ("LoConModule", {"weight_decompose": True}, "locon"),
    "loha": ("LohaModule", {"alpha": 2}, "loha"),
    "loha-dora": ("LohaModule", {"weight_decompose": True}, "loha"),
    "lokr": ("LokrModule", {"lora_dim": 1, "factor": 4}, "lokr"),
    "lokr-both": ("LokrModule", {"lora_dim": 1, "factor": 8, "decompose_both": True}, "lokr"),
    "lokr-whole": ("LokrModule", {"full_matrix": True, "factor": 4}, "lokr"),
    "lokr-dora": ("LokrModule", {"weight_decompose": True, "factor": 4}, "lokr"),
}
"""Their module, its arguments, and the adapter of ours that reads its files."""
READ_BY_DIFFUSERS = ["lora", "locon", "lora-rs", "lora-dynamic", "lora-blocks"]


def cells(names) -> Iterator:
    """Every adapter, family and precision; in the fast run each adapter once, in turns."""
    families = ("sd1", "sd2", "sdxl")
    for number, name in enumerate(names):
        for family in families:
            for dtype in DTYPES:
                turn = (families[number % 3], list(DTYPES)[number // 3 % 3])
                is_fast = (family, dtype) == turn or (family, dtype) == ("sd1", "fp32")
                marks = [] if is_fast else [pytest.mark.slow, pytest.mark.exhaustive]
                yield pytest.param(name, family, dtype, id=f"{name}-{family}-{dtype}", marks=marks)


def saved(name: str, family: str, dtype: str, path):
    """A file, a model, its plain outputs, ours as read back from the file, the base's layers."""
    model = FAMILIES[family].make()
    plain = outputs(model)
    network = make_adapter(name)
    network.attach(model)
    randomise(network)
    network.save(path, dtype=DTYPES[dtype], metadata=network.describe(model))
    network.verify(path, dtype=DTYPES[dtype])
    network.load(path)
    ours = outputs(model)
    network.detach()
    if "conv_rank" in ADAPTERS[name][1]:
        assert kinds_of(network._base) == {"linear", "conv1", "conv3", "strided"}
    return model, plain, ours, dict(network._base)


def assert_same(ours, theirs, plain) -> None:
    for mine, peer, base in zip(ours, theirs, plain, strict=True):
        assert (mine - base).abs().max() > 1e-2
        assert (mine - peer).abs().max() <= TOLERANCE * max(1.0, mine.abs().max().item())


@pytest.mark.parametrize(("name", "family", "dtype"), cells(READ_BY_LYCORIS))
def test_lycoris_computes_the_same_from_our_files(name, family, dtype, tmp_path):
    path = tmp_path / "adapter.safetensors"
    model, plain, ours, layers = saved(name, family, dtype, path)
    apply_lycoris(load_file(path), layers)
    assert_same(ours, outputs(model), plain)


@pytest.mark.parametrize(("name", "family", "dtype"), cells(READ_BY_DIFFUSERS))
def test_diffusers_computes_the_same_from_our_files(name, family, dtype, tmp_path):
    path = tmp_path / "adapter.safetensors"
    model, plain, ours, _ = saved(name, family, dtype, path)
    load_in_diffusers(model, path)
    assert_same(ours, outputs(model), plain)


@pytest.mark.parametrize(("name", "family", "dtype"), cells(ADAPTERS))
def test_the_papers_formulas_give_the_same_from_our_files(name, family, dtype, tmp_path):
    path = tmp_path / "adapter.safetensors"
    model, plain, ours, layers = saved(name, family, dtype, path)
    write_out(path, layers)
    assert_same(ours, outputs(model), plain)


@pytest.mark.parametrize(("name", "family", "dtype"), cells(OF_LYCORIS))
def test_we_compute_the_same_from_lycoris_files(name, family, dtype, tmp_path):
    kind, options, reader = OF_LYCORIS[name]
    model = FAMILIES[family].make()
    plain = outputs(model)
    bases = model.adapter_layers(["unet", "text_encoders"], conv=True)
    modules = make_lycoris(kind, {kohya_name(model, path): b for path, b in bases.items()}, options)
    kept = torch.float32 if options.get("use_scalar") else DTYPES[dtype]  # its product is written
    for module in modules:
        round_parameters(module, kept)
    path = tmp_path / "adapter.safetensors"
    tensors = {f"{m.lora_name}.{key}": t for m in modules for key, t in m.state_dict().items()}
    save_file({key: t.detach().to(kept).clone() for key, t in tensors.items()}, path)
    theirs = outputs(model)
    for module in modules:
        module.restore()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), plain, strict=True))
    network = make_adapter(reader)
    network.attach(model)
    network.load(path)
    assert_same(outputs(model), theirs, plain)


@torch.no_grad()
def round_parameters(module, dtype) -> None:
    """Let a module compute with what a file of this precision will hold."""
    for parameter in module.parameters():
        parameter.copy_(parameter.to(dtype).float())
