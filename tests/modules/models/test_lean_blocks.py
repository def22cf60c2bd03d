"""Blocks that keep less: the same numbers, fewer bytes."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from modules.mixed_precision import checkpoint
from modules.models.lean_blocks import keep_less
from modules.models.lean_operations import GEGLULinear, NormSiLUConv

SMALL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "norm_num_groups": 8,
    "sample_size": 16,
}


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).train()


@pytest.fixture
def lean(plain):
    plain.zero_grad()
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == 30  # 12 residual blocks, 6 feed-forward ones, 12 of attention
    return lean


def run(unet, *, amp=None):
    """The output; gradients are in the parameters; and the bytes that were kept for them."""
    random = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 16, 16, generator=random)
    text = torch.randn(2, 7, 16, generator=random)
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another would get its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
        output = unet(sample, torch.tensor([5, 9]), text).sample
    output.float().square().sum().backward()
    return output.detach(), sum(kept.values())


def gradients(unet):
    return [p.grad for p in unet.parameters() if p.requires_grad]


def test_the_whole_model_is_trained_alike_and_keeps_a_third_less(plain, lean):
    (expected, before), (output, after) = run(plain), run(lean)
    assert torch.equal(output, expected)
    for ours, theirs in zip(gradients(lean), gradients(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert after < 0.7 * before


def test_where_weights_rest_and_a_hook_adds_to_a_layer(plain, lean):
    """As adapters do it, on a convolution and on both layers of a feed-forward block."""
    paths = [name for name, m in plain.named_modules() if type(m) is nn.Conv2d]
    paths += [n for n, _ in plain.named_modules() if n.endswith(("ff.net.0.proj", "ff.net.2"))]
    plain, scales = copy.deepcopy(plain), []
    for unet in (plain, lean):
        unet.requires_grad_(False)
        scale = nn.Parameter(torch.tensor(0.1))
        for path in paths:
            layer = unet.get_submodule(path)
            layer.register_forward_hook(lambda _m, _x, y, scale=scale: y + scale * y.sin())
        scales.append(scale)
    (expected, before), (output, after) = run(plain), run(lean)
    assert torch.equal(output, expected)
    assert torch.equal(scales[0].grad, scales[1].grad)
    assert after < before


def test_a_frozen_convolution_keeps_no_input():
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    norm, conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        numbers = (2, norm.eps, 1, 1)
        NormSiLUConv.apply(
            x, norm.weight, norm.bias, conv.weight, conv.bias, numbers, torch.float32
        )
    assert [t.shape for t in kept if t.numel() >= x.numel()] == [x.shape]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_conv", [True, False])
def test_gradients_of_a_normalization_with_its_convolution(layout, has_conv):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64).to(memory_format=layout)
    norm, conv = nn.GroupNorm(2, 4).double(), nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    nn.init.normal_(norm.weight)
    weights = [norm.weight, norm.bias, *([conv.weight, conv.bias] if has_conv else [None, None])]

    def compute(x, *weights):
        return NormSiLUConv.apply(x, *weights, (2, norm.eps, 2, 1), torch.float64)

    expected = torch.nn.functional.silu(norm(x))
    torch.testing.assert_close(
        compute(x, *weights), conv(expected) if has_conv else expected, rtol=1e-12, atol=1e-12
    )
    assert torch.autograd.gradcheck(compute, (x.requires_grad_(), *weights))


@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (2, 4, 1, 2), (1, 4, 2, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1), (1, 3, 2, 0)])
def test_any_layout(shape, order):
    """As transposing back from tokens leaves one image, for which strides can be anything."""
    places = [order.index(dimension) for dimension in range(4)]
    x = torch.randn([shape[dimension] for dimension in order]).permute(places)
    norm = nn.GroupNorm(2, 4)
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    numbers = (2, norm.eps, 1, 0)
    found = NormSiLUConv.apply(ours, norm.weight, norm.bias, None, None, numbers, x.dtype)
    expected = torch.nn.functional.silu(norm(theirs))
    torch.testing.assert_close(found, expected)
    found.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("has_linear", [True, False])
def test_gradients_of_a_gated_unit_with_its_layer(has_linear):
    torch.manual_seed(0)
    projection = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    linear = nn.Linear(4, 5).double()
    weights = [linear.weight, linear.bias] if has_linear else [None, None]

    def compute(projection, *weights):
        return GEGLULinear.apply(projection, *weights, torch.float64)

    hidden, gate = projection.chunk(2, dim=-1)
    product = hidden * torch.nn.functional.gelu(gate)
    expected = linear(product) if has_linear else product
    torch.testing.assert_close(compute(projection, *weights), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(compute, (projection, *weights))


def test_mixed_precision_is_as_near_to_full_precision(plain, lean):
    exact, _ = run(plain)
    expected = [grad.clone() for grad in gradients(plain)]
    errors = []
    for unet in (plain, lean):
        unet.zero_grad()
        output, _ = run(unet, amp=torch.bfloat16)
        assert output.dtype == torch.bfloat16
        assert {grad.dtype for grad in gradients(unet)} == {torch.float32}
        pairs = list(zip(gradients(unet), expected, strict=True))
        wrong = sum((grad - right).square().sum() for grad, right in pairs)
        whole = sum(right.square().sum() for _, right in pairs)
        errors.append(((output - exact).norm() / exact.norm(), (wrong / whole).sqrt()))
    for plain_error, lean_error in zip(*errors, strict=True):
        assert lean_error < 1.1 * plain_error


def test_with_checkpointing(plain, lean):
    run(plain)
    lean.enable_gradient_checkpointing(checkpoint)
    _, kept = run(lean)
    for ours, theirs in zip(gradients(lean), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    lean.disable_gradient_checkpointing()
    assert kept < 0.5 * run(lean)[1]


def test_attention_of_another_kind_is_left_to_its_processor(plain, lean):
    calls = []

    class Counting(AttnProcessor2_0):
        def __call__(self, *args, **options):
            calls.append(1)
            return super().__call__(*args, **options)

    lean.set_attn_processor(Counting())
    assert torch.equal(run(lean)[0], run(plain)[0])
    assert len(calls) == 12


def test_attention_with_a_mask_is_as_it_was(plain, lean):
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([5, 9]), torch.randn(2, 7, 16)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    with torch.no_grad():
        masked, expected = (
            unet(*inputs, encoder_attention_mask=mask).sample for unet in (lean, plain)
        )
        free = lean(*inputs).sample
    assert torch.equal(masked, expected)
    assert not torch.equal(masked, free)


def test_dropout_is_left_to_the_block(lean):
    lean.requires_grad_(False)
    block = lean.mid_block.resnets[0]
    block.dropout.p = 0.5
    x, temb = torch.randn(1, 64, 4, 4), torch.randn(1, 128)
    assert not torch.equal(block(x, temb), block(x, temb))
    assert torch.equal(block.eval()(x, temb), block(x, temb))
