"""The engine: accelerate, the device and precision of every module, attention kernels."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.block_offload import offload_blocks
from modules.checkpointing import Checkpointed, diffusers_models, enable_checkpointing
from modules.console import OUR_LOGGERS
from modules.errors import ConfigError
from modules.meeting import PATIENCE, meet
from modules.models.lean_blocks import keep_less
from modules.models.quantized import plain_parameters, quantize_frozen
from modules.models.spaces import release_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.models.model import Model

logger = logging.getLogger(__name__)

_COMPUTE_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


_SHARDING = {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}


def create_accelerator(mixed_precision: str) -> Accelerator:
    """The accelerator of this process; one of an earlier run in the process is replaced.

    Raises:
        ConfigError: the launcher asks for a model that is sharded over the devices.
    """
    for variable, option in _SHARDING.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise ConfigError(
                f"{option}: the model can't be sharded over devices, each holds all of it; launch "
                f"without {option} (here {variable} is set), see docs/distributed.md"
            )
    from accelerate import (
        Accelerator,
        DistributedDataParallelKwargs,
        InitProcessGroupKwargs,
    )
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(find_unused_parameters=False)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Said outright: without it, several CPU processes would each train alone.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[ddp, patience],
        step_scheduler_with_optimizer=False,
    )
    meet(accelerator, "the start")
    if not accelerator.is_main_process:
        for name in OUR_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)  # one process speaks for all
    return accelerator


def prepare_modules(
    model: Model,
    networks: Mapping[str, Any],
    *,
    device: torch.device,
    mixed_precision: str,
    gradient_checkpointing: Checkpointed,
    quantize: str | None = None,
    offload: int = 0,
) -> None:
    """Move everything to the device and set modes and dtypes.

    Trained parameters stay in float32. A component of which nothing is trained takes the compute
    dtype, and the denoiser then computes in it without autocast. The VAE is never in float16, where
    it overflows. `quantize` names how frozen weights of the denoiser and text encoders are stored;
    `offload` blocks of the denoiser, all of it frozen, rest in the machine's memory.
    """
    compute_dtype = _COMPUTE_DTYPES[mixed_precision]
    vae_dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    pieces = {**model.components(), **({} if model.vae is None else {"vae": model.vae})}
    for name, module in pieces.items():
        trained = any(parameter.requires_grad for parameter in module.parameters())
        frozen_dtype = vae_dtype if name == "vae" else compute_dtype
        if quantize is not None and name != "vae":
            quantize_frozen(module, quantize, device=device)
        dtype = torch.float32 if trained else frozen_dtype
        if offload and name == "unet":
            module.to(dtype=dtype)
            model.offload = offload_blocks(module, offload, device=device)
        module.to(device, dtype)
        module.train(trained)
    for network in networks.values():
        prepare_network(network.to(device), mixed_precision=mixed_precision)
    for part in diffusers_models([*pieces.values(), *networks.values()]):
        keep_less(part)
    model.denoiser_dtype = own_dtype(model, networks)
    enable_checkpointing(model, networks, gradient_checkpointing)


def own_dtype(model: Model, networks: Mapping[str, Any]) -> torch.dtype | None:
    """The half precision of a frozen denoiser that needs no autocast, which casts in every layer.

    A network that works inside of the denoiser must follow its dtype.
    """
    denoiser = getattr(model, "denoiser", None)
    if denoiser is None or any(p.requires_grad for p in denoiser.parameters()):
        return None
    dtypes = {p.dtype for p in plain_parameters(denoiser)}
    follow = all(getattr(network, "follows_dtype", False) for network in networks.values())
    return dtypes.pop() if follow and dtypes in ({torch.float16}, {torch.bfloat16}) else None


def prepare_network(network: Any, *, mixed_precision: str) -> None:
    """Set a network's mode, and the compute dtype where nothing of it is trained."""
    trained = any(parameter.requires_grad for parameter in network.parameters())
    if not trained:
        for part in diffusers_models([network]):
            part.to(_COMPUTE_DTYPES[mixed_precision])
    network.train(trained)


@contextlib.contextmanager
def memory_returned(device: torch.device) -> Iterator[None]:
    """Give back what was needed for a while alone; a failed action's tensors too, once it is over.

    Only that it fragments less: torch would use the memory again, but in blocks of other sizes.
    """
    yield
    release_memory(device)


class LossModule(nn.Module):
    """All that may be trained under one forward, so that one wrapper synchronises all of it."""

    def __init__(self, compute: Callable[[Batch], Tensor], modules: Sequence[Any]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.compute = compute
        # What rests is as every process has read it: DDP need not send it when it begins, and
        # could not where it is not on the device.
        resting = [name for name, p in self.named_parameters() if not p.requires_grad]
        self._ddp_params_and_buffers_to_ignore = resting

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.compute(batch)


def store_channels_last(model: Model, networks: Mapping[str, Any]) -> None:
    """Store 4-dimensional weights of diffusers' models, (out, in, k, k), with `in` last.

    Activations between convolutions follow.
    """
    parts = [*model.components().values(), *networks.values()]
    for module in diffusers_models([*parts, *([] if model.vae is None else [model.vae])]):
        module.to(memory_format=torch.channels_last)


def set_attention(model: Model, networks: Mapping[str, Any], kernel: str) -> None:
    """Choose the attention kernels; SDPA is diffusers' default and always works."""
    if kernel == "sdpa":
        return
    try:
        for module in diffusers_models([*model.components().values(), *networks.values()]):
            module.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("train.attention: xformers can't be used here (%s); using sdpa", reason)
