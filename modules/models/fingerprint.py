"""Hashes of what a model computes with, whatever files it came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn


def hash_weights(module: nn.Module, *, without: tuple[str, ...] = ()) -> str:
    """Hash a module's tensors with their names and shapes, in float32.

    Those whose names begin with one of `without` are left out.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if key.startswith(without):
            continue
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def hash_encoder(vae: nn.Module) -> str:
    """Hash what of a VAE its latents depend on: its encoding half."""
    return hash_weights(vae, without=("decoder.", "post_quant_conv."))


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash a tokenizer's vocabulary and rules."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # of its latest call
        rules.pop(key, None)
    text = json.dumps([rules, tokenizer.pad_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
