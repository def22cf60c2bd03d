"""What tests ask of adapters and models."""

from __future__ import annotations

import torch
from torch import nn

from modules.batch import Batch, DenoiserInputs


def perturb(network: nn.Module, *, scale: float = 0.3) -> None:
    """Give every tensor a value, so that the adapter has an effect."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def outputs(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embedding and prediction for fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        batch = Batch(captions=["a red cat"], original_size=torch.tensor([[32, 32]]))
        conditions = model.encode_prompts(batch)
        inputs = DenoiserInputs(
            sample=torch.randn(1, 4, 8, 8, generator=generator),
            timestep=torch.tensor([500]),
            **conditions,
        )
        return conditions["encoder_hidden_states"], model.denoise(inputs)
