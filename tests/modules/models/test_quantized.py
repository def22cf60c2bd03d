"""Frozen weights in 8 and 4 bits: what is stored, how exact it is, what the backward keeps."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from modules.models.lean_blocks import keep_less
from modules.models.quantized import (
    QuantizedLayer,
    is_quantized,
    plain_parameters,
    quantize_frozen,
)
from modules.models.weight_storage import STORAGES

CPU = torch.device("cpu")
CODES = {"int8": torch.int8, "fp8": torch.uint8, "nf4": torch.uint8}
MOST_ERROR = {"int8": 0.008, "fp8": 0.028, "nf4": 0.1}  # of normal weights
MOST_BYTES = {"int8": 0.51, "fp8": 0.51, "nf4": 0.29}  # of bfloat16's
LAYERS = {
    "linear": (lambda: nn.Linear(320, 640), (3, 7, 320)),
    "conv": (lambda: nn.Conv2d(48, 24, 3, padding=1, stride=2), (2, 48, 9, 8)),
    "1x1": (lambda: nn.Conv2d(32, 64, 1, bias=False), (2, 32, 4, 4)),
}


def pair(make, name, dtype=torch.float32):
    """A frozen layer, and the same one stored."""
    torch.manual_seed(0)
    plain = make().requires_grad_(False).to(dtype)
    nn.init.normal_(plain.weight, std=0.03)
    stored = copy.deepcopy(plain)
    assert quantize_frozen(nn.ModuleList([stored]), name, device=CPU) == 1
    return plain, stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", STORAGES)
def test_a_stored_layer_computes_as_before_but_for_its_rounding(name, kind, dtype):
    make, shape = LAYERS[kind]
    plain, stored = pair(make, name, dtype)
    assert stored.codes.dtype == CODES[name]
    assert stored.scale.dtype == torch.float32
    assert stored.weight.dtype == dtype
    off = (stored.weight.float() - plain.weight.float()).norm() / plain.weight.float().norm()
    assert 0 < off < MOST_ERROR[name]
    x = torch.randn(shape, dtype=dtype)
    whole = copy.deepcopy(plain)
    whole.weight.data = stored.weight
    assert torch.equal(stored(x), whole(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", STORAGES)
def test_gradients_are_those_of_the_weight_that_is_computed_with(name, kind):
    make, shape = LAYERS[kind]
    plain, stored = pair(make, name)
    plain.weight.data = stored.weight
    inputs = [torch.randn(shape, generator=torch.manual_seed(1)) for _ in range(2)]
    for layer, x in zip((plain, stored), inputs, strict=True):
        x.requires_grad_()
        layer(x).square().sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STORAGES)
def test_nothing_of_a_weight_s_size_is_kept_for_the_backward_pass(name):
    plain, stored = pair(LAYERS["linear"][0], name)
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = torch.randn(2, 320, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stored(x)
    assert sum(kept.values()) == stored.codes.nbytes + stored.scale.nbytes
    assert sum(kept.values()) < plain.weight.nbytes / 3.9


@pytest.mark.parametrize("name", STORAGES)
def test_the_weights_of_a_whole_unet_take_half_of_bfloat16_or_less(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # SD 1.5's
    unet.requires_grad_(False)
    kinds = (nn.Linear, nn.Conv2d)
    whole = sum(2 * m.weight.numel() for m in unet.modules() if isinstance(m, kinds))
    quantize_frozen(unet, name, device=torch.device("meta"))
    layers = [m for m in unet.modules() if isinstance(m, QuantizedLayer)]
    assert len(layers) == 184 + 96  # all but those from and to the latents
    taken = sum(m.codes.nbytes + m.scale.nbytes for m in layers)
    assert taken < MOST_BYTES[name] * whole
    rest = sum(p.numel() for p in plain_parameters(unet))
    assert rest < 0.001 * whole


def test_another_dtype_or_device_leaves_what_is_stored_as_it_is():
    _, stored = pair(LAYERS["conv"][0], "fp8")
    codes, scale = stored.codes, stored.scale
    stored.to(CPU, torch.bfloat16)
    assert stored.codes is codes
    assert stored.scale is scale
    assert stored.bias.dtype == stored.weight.dtype == torch.bfloat16
    stored.to("meta")
    assert (stored.codes.dtype, stored.scale.dtype) == (torch.uint8, torch.float32)
    assert stored.codes.is_meta
    assert stored.scale.is_meta


def test_what_is_stored_already_stays():
    unet = tiny.make_sd().denoiser.requires_grad_(False)
    assert quantize_frozen(unet, "int8", device=CPU) > 50
    assert is_quantized(unet)
    assert quantize_frozen(unet, "int8", device=CPU) == 0


def test_a_changed_piece_that_was_rounded_is_not_saved(tmp_path):
    model = tiny.make_sd()
    model.denoiser.requires_grad_(False)
    quantize_frozen(model.denoiser, "int8", device=CPU)
    model.mark_changed(["unet.conv_in"])
    with pytest.raises(ValueError, match=r"unet: its weights are stored in 8 bits"):
        model.save_pretrained(tmp_path / "whole", dtype=torch.float32)


def test_blocks_of_stored_layers_keep_as_little_as_others():
    kept = {}
    for name in (None, "int8"):
        unet = tiny.make_sd(sd2=True).denoiser.requires_grad_(False)
        if name:
            quantize_frozen(unet, name, device=CPU)
        weights = {p.data_ptr() for p in unet.parameters()}
        blocks, sizes = keep_less(unet), {}

        def note(tensor, weights=weights, sizes=sizes):
            if tensor.data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        sample = torch.randn(32, 4, 8, 8, requires_grad=True)
        states = torch.randn(32, 16, 32)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = unet(sample, torch.tensor(3), encoder_hidden_states=states).sample
        assert output.requires_grad
        kept[name] = (blocks, sum(sizes.values()))
    assert kept["int8"][0] == kept[None][0] > 8
    assert kept["int8"][1] <= kept[None][1]
