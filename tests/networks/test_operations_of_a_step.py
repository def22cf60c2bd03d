"""Operations of an SDXL step, counted on the meta device: small batches wait for their launches."""

from __future__ import annotations

import pytest
import torch
from operations import Operations

from modules.engine import prepare_modules
from modules.memory_trace import put_on_meta
from modules.meta_autocast import MetaAutocast
from modules.models.published import published_model
from networks.lora import LoRA

MOST = 8_000
"""Of a step with a LoRA; PEFT's in float32 beside a bf16 base takes 13,707."""


def count_operations(network, dtype, *, pixels=1024):
    """Operations that are no views of a forward and backward pass of SDXL's UNet, one image."""
    model = published_model("sdxl")
    for encoder in model.text_encoders:
        put_on_meta(encoder.module)
    model.denoiser.requires_grad_(False)
    network.attach(model)
    put_on_meta(network)
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    prepare_modules(
        model,
        {"network": network},
        device=torch.device("meta"),
        mixed_precision=precision,
        gradient_checkpointing=False,
    )
    options = {"device": "meta", "dtype": dtype}
    side = pixels // 8
    inputs = {
        "encoder_hidden_states": torch.empty(1, 77, 2048, **options),
        "added_cond_kwargs": {
            "text_embeds": torch.empty(1, 1280, **options),
            "time_ids": torch.empty(1, 6, **options),
        },
    }
    sample, times = torch.empty(1, 4, side, side, **options), torch.zeros(1, device="meta")
    with Operations() as operations, MetaAutocast(None):  # attention as a fused kernel
        model.denoiser(sample, times, **inputs).sample.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    attentions = operations.counts["new_empty"] // 3  # which allocate, and compute nothing
    assert attentions == 140
    return operations.launches + 2 * attentions  # a kernel of each pass


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_a_lora_takes_few_beside_a_frozen_base(dtype):
    assert 7_000 < count_operations(LoRA(rank=16, targets=["unet"]), dtype) <= MOST
