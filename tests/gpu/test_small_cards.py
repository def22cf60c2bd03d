"""Stored weights and blocks that rest, on CUDA: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import tiny
import torch

from modules.block_offload import find_blocks, offload_blocks
from modules.models.quantized import quantize_frozen
from networks.lora import LoRA

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


def gradients(*, offload: int = 0, quantize: str | None = None, device: torch.device = CUDA):
    """Gradients of a LoRA in the third of three steps, and what brings the blocks."""
    model = tiny.make_sd(sd2=True)
    unet, network = model.denoiser.requires_grad_(False).double(), LoRA(rank=2)
    network.attach(model)
    generator = torch.manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    network.double().to(device)
    if quantize:
        quantize_frozen(unet, quantize, device=device)
    resting = offload_blocks(unet, offload, device=device) if offload else None
    unet.to(device)
    x, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 16, 32)))
    for _ in range(3):
        network.zero_grad()
        given = x.to(device).double(), torch.tensor([3, 500], device=device)
        output = unet(*given, encoder_hidden_states=states.to(device).double()).sample
        output.square().mean().backward()
    return [parameter.grad.cpu() for parameter in network.parameters()], resting


@pytest.mark.parametrize("quantize", [None, "int8", "fp8", "nf4"])
def test_blocks_come_in_time(quantize):
    count = len(find_blocks(tiny.make_sd().denoiser))
    whole, _ = gradients(quantize=quantize)
    found, resting = gradients(offload=count, quantize=quantize)
    for one, other in zip(whole, found, strict=True):
        assert (one - other).norm() < 1e-10 * one.norm()
    assert all(each._host.is_pinned() for each in resting.blocks.values())
    assert resting._stream is not None
    largest = sorted(each.size for each in resting.blocks.values())[-2:]
    assert 0 < resting.resident_bytes <= sum(largest)


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_stored_weights_compute_as_on_a_processor(quantize):
    there, _ = gradients(quantize=quantize)
    here, _ = gradients(quantize=quantize, device=torch.device("cpu"))
    for one, other in zip(here, there, strict=True):
        assert (one - other).norm() < 1e-6 * one.norm()
