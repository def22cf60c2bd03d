"""What a run's parts keep in memory, found by running them on the meta device, without values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs, Sample, collate
from modules.checkpointing import Checkpointed, enable_checkpointing
from modules.drawing import guided_batch
from modules.engine import own_dtype, prepare_modules, prepare_network
from modules.fused_backward import Waiting
from modules.live_memory import MANY, LiveMemory, Peak, stored
from modules.meta_autocast import MetaAutocast
from modules.token_merging import merge_tokens, whole_tokens

META = torch.device("meta")
DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def put_on_meta(module: nn.Module) -> None:
    """Take the values of a module's tensors away; single numbers stay, code may read them."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_meta:
                bare = nn.Parameter(parameter.to(META), requires_grad=parameter.requires_grad)
                part._parameters[name] = bare
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.numel() > 1:
                part._buffers[name] = buffer.to(META)


def prepare_on_meta(
    model: Any,
    networks: Mapping[str, Any],
    *,
    mixed_precision: str,
    checkpointing: Checkpointed,
    quantize: str | None,
) -> None:
    """Give everything the modes and dtypes that it has in the run."""
    prepare_modules(
        model,
        {},
        device=META,
        mixed_precision=mixed_precision,
        gradient_checkpointing=False,
        quantize=quantize,
    )
    for network in networks.values():
        prepare_network(network, mixed_precision=mixed_precision)
    model.denoiser_dtype = own_dtype(model, networks)
    enable_checkpointing(model, networks, checkpointing)


def trace_step(
    loss: Callable[[Batch], Tensor],
    sample: Sample,
    parts: Sequence[nn.Module],
    *,
    mixed_precision: str,
    keeps_gradients: bool,
    frees_gradients: bool = False,
) -> Peak:
    """Forward and backward pass of a batch of such samples, gradients included.

    `keeps_gradients`: they are there before, of another batch, and count nothing here;
    `frees_gradients`: a few at a time are stepped with and go.
    """
    batch = collate([sample]).to(META).repeat(MANY)
    trained = trained_of(parts)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter) if keeps_gradients else None
    waiting = Waiting(trained if frees_gradients else [], lambda _: None)
    try:
        with LiveMemory() as live, MetaAutocast(DTYPES[mixed_precision]) as autocast:
            live.ignore(tensor for part in parts for tensor in stored(part))
            live.ignore(p.grad for p in trained if p.grad is not None)
            live.add(tensors_of(batch))
            value = loss(batch)
            autocast.forget()
            _run_backward(value)
        return live.peak
    finally:
        waiting.finish()
        for hook in waiting.hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None


@torch.no_grad()
def trace_sampling(
    model: Any,
    networks: Sequence[Any],
    *,
    size: tuple[int, int],
    count: int,
    guided: bool,
    extras: Mapping[str, Tensor],
    mixed_precision: str,
    tome: bool,
) -> int:
    """Bytes of drawing `count` images of `size` (width, height) at a time: a step, the decoding."""
    parts = [*model.components().values(), *networks]
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    prompts = ["a photo"] * count
    batch = guided_batch(prompts, "" if guided else None, extras, size=size).to(META)
    merging = whole_tokens(model.denoiser) if not tome else whole_tokens(nn.Identity())
    width, height = (side // model.vae_scale_factor for side in size)
    try:
        with LiveMemory() as live, MetaAutocast(DTYPES[mixed_precision]), merging:
            live.ignore(tensor for part in [*parts, model.vae] if part for tensor in stored(part))
            live.add(tensors_of(batch))
            latents = torch.empty(count, model.latent_channels, height, width, device=META)
            sample = torch.cat([latents, latents]) if guided else latents
            inputs = DenoiserInputs(
                sample=sample,
                timestep=torch.zeros(len(sample), dtype=torch.long, device=META),
                **model.encode_prompts(batch),
            )
            for network in networks:
                inputs = network.condition(inputs, batch)
            model.denoise(inputs).float()
            del sample
            model.space.decode_pixels(latents)
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
    return live.peak.at(live.images)


def _run_backward(loss: Tensor) -> None:
    """As `loss.backward()`, which would leave the mode that casts: checkpoints compute again."""
    engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


def trained_of(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters that require gradients, each once."""
    found = {id(p): p for part in parts for p in part.parameters() if p.requires_grad}
    return list(found.values())


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch."""
    found = []
    for value in vars(batch).values():
        values = value.values() if isinstance(value, Mapping) else (value,)
        found += [each for each in values if isinstance(each, Tensor)]
    return found


def stand_in(model: Any, networks: Mapping[str, Any], objective: Any, repeats: int) -> Any:
    """What a trainer's loss looks at of the trainer."""
    return SimpleNamespace(
        model=model,
        networks=dict(networks),
        objective=objective,
        source=SimpleNamespace(repeats=repeats),
    )


def merge_on_meta(model: Any, ratio: float | None) -> None:
    """Merge tokens as the run does."""
    if ratio:
        merge_tokens(model.denoiser, ratio)
