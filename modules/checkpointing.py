"""Gradient checkpointing: of all that gradients pass through, of blocks that are named, or of none.

Activations inside of a checkpointed block are not kept but computed again in the backward pass
(Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from modules.mixed_precision import checkpoint
from modules.models.patterns import matches, no_match

if TYPE_CHECKING:
    from modules.models.model import Model

Checkpointed = bool | Sequence[str]
"""All blocks, none, or patterns of those meant: `unet.down_blocks.0`, `unet.*.attentions`."""


def as_key(chosen: Checkpointed) -> bool | tuple[str, ...]:
    """What is chosen as a value that can be looked up; an empty list is none."""
    return chosen if isinstance(chosen, bool) else tuple(chosen) or False


def choose_checkpoints(
    model: Model, networks: Mapping[str, Any], chosen: Checkpointed
) -> dict[str, nn.Module]:
    """The blocks to compute again, by module path: `unet.up_blocks.1`, `networks.NAME.net...`.

    Raises:
        ValueError: a pattern names no block that can be computed again.
    """
    if not chosen:
        return {}
    blocks = dict(_blocks(model, networks))
    if chosen is True:
        return blocks
    assert not isinstance(chosen, bool)
    for pattern in chosen:
        if not any(matches(path, pattern) for path in blocks):
            raise ValueError(no_match(pattern, blocks))
    return {
        path: block
        for path, block in blocks.items()
        if any(matches(path, pattern) for pattern in chosen)
    }


def enable_checkpointing(model: Model, networks: Mapping[str, Any], chosen: Checkpointed) -> None:
    """Compute again in the backward pass what is chosen, and nothing else.

    Text encoders that no gradient passes through are left as they are.
    """
    wanted = {id(block) for block in choose_checkpoints(model, networks, chosen).values()}
    if not wanted:
        return
    for module in diffusers_models([*model.components().values(), *networks.values()]):
        module.enable_gradient_checkpointing(checkpoint)
    reached = {path for network in networks.values() for path in network.parameter_groups()}
    for number, encoder in enumerate(model.text_encoders):
        trained = any(parameter.requires_grad for parameter in encoder.module.parameters())
        own = f"text_encoders.{number}"
        layers = [layer for layer in encoder.module.modules() if id(layer) in wanted]
        if layers and (trained or any(matches(path, own) for path in reached)):
            encoder.module.activation_checkpointing_enable()
            encoder.module.train()  # transformers checkpoints in training mode only
    for _, block in _blocks(model, networks):
        if id(block) not in wanted:
            block.gradient_checkpointing = False


def _blocks(model: Model, networks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All that diffusers and transformers can compute again, with their paths."""
    owners: dict[str, Any] = dict(model.components())
    owners |= {f"networks.{name}": network for name, network in networks.items()}
    for owner, module in owners.items():
        for path, part in module.named_modules():
            if path and hasattr(part, "gradient_checkpointing"):
                yield f"{owner}.{path}", part


def diffusers_models(modules: Sequence[Any]) -> Iterator[Any]:
    """Models of diffusers in what is given: a UNet or VAE itself, a network's ControlNet."""
    from diffusers import ModelMixin

    for module in modules:
        yield from (part for part in module.modules() if isinstance(part, ModelMixin))
