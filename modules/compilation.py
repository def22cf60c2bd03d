"""Compilation of the blocks that a denoiser repeats, each kind of block once (`torch.compile`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modules.checkpointing import diffusers_models
from modules.sections import Config

if TYPE_CHECKING:
    from modules.models.model import Model

_KEY = "train.compile"
_MOST_VARIANTS = 256
"""Of a block's code: its channels, shapes of buckets, with gradients and without."""


def compilation_faults(config: Config) -> list[str]:
    """What of a config, or of this machine, doesn't go with compiled blocks; one line each."""
    if not config.train.compile:
        return []
    faults = []
    if config.model.offload_blocks:
        faults.append(
            f"{_KEY}: blocks whose weights come and go can't be compiled; take out "
            "model.offload_blocks, or train.compile"
        )
    if config.train.tome_ratio:
        faults.append(
            f"{_KEY}: merged tokens differ from step to step, which can't be compiled; take out "
            "train.tome_ratio, or train.compile"
        )
    lacking = None if faults else _lacking()
    if lacking:
        faults.append(f"{_KEY}: {lacking}")
    return faults


def compile_blocks(model: Model, networks: Mapping[str, Any], *, backend: str = "inductor") -> int:
    """Compile residual and transformer blocks in place; returns how many there are.

    Blocks of one kind share what is compiled. It is done when they first run, again for other
    shapes, from the second shape on for any.
    """
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * _MOST_VARIANTS)
    blocks = find_repeated(model, networks)
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def find_repeated(model: Model, networks: Mapping[str, Any]) -> list[nn.Module]:
    """The residual and transformer blocks of the denoiser and of networks like it."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    kinds = BasicTransformerBlock, ResnetBlock2D
    owners = diffusers_models([*model.components().values(), *networks.values()])
    return [part for owner in owners for part in owner.modules() if isinstance(part, kinds)]


def _lacking() -> str | None:
    """What this machine lacks to compile."""
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        if not has_triton():
            return "needs triton, which isn't installed or doesn't know this card; take it out"
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "needs a C++ compiler on this machine without a card; install g++, or take it out"
    return None
