"""How CLIP text encoders read prompts: in how many chunks, and which of their hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modules.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

CHUNK = 75
"""Tokens of a chunk of CLIP's, without start and end."""


def set_prompts(model: DiffusionModel, *, max_token_length: int, clip_skip: int | None) -> None:
    """Let prompts have up to so many tokens, and text encoders be read before their last layers.

    A long prompt is cut into chunks that are encoded one by one and stand side by side, as
    AUTOMATIC1111 and ComfyUI do it; every prompt gets as many chunks as the longest may have.

    Raises:
        ValueError: text encoders of this family are read in one way only.
    """
    for encoder in model.text_encoders:
        if encoder.length is not None and (max_token_length != CHUNK or clip_skip is not None):
            raise ValueError(
                f"{'max_token_length' if clip_skip is None else 'clip_skip'}: is for CLIP; a "
                f"{type(encoder.module).__name__} always reads {encoder.length} tokens to the end"
            )
        if clip_skip is not None and clip_skip > layer_count(encoder):
            raise ValueError(
                f"clip_skip: {clip_skip} is more than the {layer_count(encoder)} layers of a "
                f"{type(encoder.module).__name__}"
            )
        encoder.chunks = max_token_length // CHUNK
    if clip_skip is not None:
        model.clip_skip = clip_skip


def read_states(
    encoder: TextEncoder, captions: Sequence[str], *, skip: int, is_normed: bool
) -> tuple[Tensor, Any]:
    """Hidden states, (B, chunks * tokens, D), `skip` from the last, and all of the output.

    `is_normed`: the encoder's last normalisation is put on them, as SD1 and SD2 have it.
    """
    is_last = is_normed and skip == 1
    output = encoder.module(encoder.ids(captions), output_hidden_states=not is_last)
    if is_last:
        return encoder.side_by_side(output.last_hidden_state), output
    states = output.hidden_states[-skip]
    if is_normed:
        core = getattr(encoder.module, "text_model", encoder.module)
        states = core.final_layer_norm(states)
    return encoder.side_by_side(states), output


def skipped_layers(model: DiffusionModel, number: int) -> list[str]:
    """Module paths of a text encoder's layers that stand behind the states which are read."""
    module = model.text_encoders[number].module
    core = "text_model." if hasattr(module, "text_model") else ""
    count = layer_count(model.text_encoders[number])
    return [
        f"text_encoders.{number}.{core}encoder.layers.{layer}"
        for layer in range(count - model.clip_skip + 1, count)
    ]


def layer_count(encoder: TextEncoder) -> int:
    """Layers of a text encoder."""
    return encoder.module.config.num_hidden_layers
