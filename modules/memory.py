"""A run's peak memory on a card, estimated from its real modules without their weights.

Model, networks, loss and optimizer run once on the meta device; nothing is computed. What a card's
kernels allocate for themselves, CUDA and gaps between blocks are an allowance on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from modules.batch import Sample
from modules.block_offload import find_blocks, spared_bytes
from modules.checkpointing import Checkpointed, as_key
from modules.fused_backward import waiting_at_most
from modules.live_memory import Peak, bytes_of, stored
from modules.memory_trace import (
    META,
    merge_on_meta,
    prepare_on_meta,
    put_on_meta,
    stand_in,
    trace_sampling,
    trace_step,
    trained_of,
)
from modules.models.quantized import bytes_spared
from modules.optimizer_memory import measure_optimizer
from modules.run_kinds import kind_of
from modules.run_parts import RunParts
from modules.sections import Config

GIB = 2**30
FIXED_ALLOWANCE = 0.6 * GIB
"""For CUDA, its libraries and their workspaces; assumed."""
SHARE_ALLOWANCE = 0.05
"""For gaps between blocks, of what the tensors take; assumed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of a run at one precision, for every batch size."""

    weights: int
    average: int
    state: int  # the optimizer's
    trained: int  # bytes of what is trained
    gradients: int  # all that are there at once when the optimizer steps
    keeps_gradients: bool  # over several batches
    optimizer_step: int  # beside all that
    steps_within: bool  # whether the optimizer steps within the backward pass
    step: Peak  # of forward and backward, by images of a batch
    sampling: int
    repeats: int
    rounding: int  # of `weights`, what frozen ones would leave free in int8
    resting: int  # and what all blocks of the denoiser would

    @property
    def kept(self) -> int:
        """What lives all the time."""
        return self.weights + self.average + self.state

    def phases(self, batch_size: int) -> dict[str, int]:
        """The most bytes that tensors take in each phase of a run."""
        step = self.step.at(max(1, batch_size // self.repeats))
        before = self.gradients if self.keeps_gradients else 0
        before += self.optimizer_step if self.steps_within else 0
        return {
            "training": self.kept + before + step,
            "optimizer": self.kept + self.gradients + self.optimizer_step,
            "sampling": self.kept + self.sampling,
        }

    def peak(self, batch_size: int) -> float:
        """Bytes that the card needs, allowance included."""
        return max(self.phases(batch_size).values()) * (1 + SHARE_ALLOWANCE) + FIXED_ALLOWANCE


class RunMemory:
    """What a run would need at each precision, with gradient checkpointing or without.

    The parts are used up: they are on `meta` afterwards, of other dtypes.

    Raises:
        ValueError: the optimizer's state can't be told.
    """

    def __init__(self, config: Config, parts: RunParts):
        self.config, self._parts = config, parts
        self.sample = largest_sample([d for d in (parts.dataset, parts.prior) if d is not None])
        pieces: list[Any] = [*parts.networks.values(), *parts.model.components().values()]
        for module in [*pieces, parts.model.vae]:
            if module is not None:
                put_on_meta(module)
        merge_on_meta(parts.model, config.train.tome_ratio)
        self._modules = [*parts.model.components().values(), *parts.networks.values()]
        self.trained = trained_of(self._modules)
        optimizer = config.optimizer
        self._state = measure_optimizer(optimizer.module, optimizer.args, self.trained)
        self._stepped = self.trained  # with their gradients, all at once
        if optimizer.fused_backward:
            self._stepped = waiting_at_most(self.trained)
            once = measure_optimizer(optimizer.module, optimizer.args, self._stepped)
            self._state = self._state[0], once[1]
        self._found: dict[tuple[str, bool | tuple[str, ...]], Estimate] = {}
        self._steps: dict[tuple[object, ...], Peak] = {}

    @property
    def could_cache_latents(self) -> bool:
        """Whether the dataset has images of which the model needs no more than latents."""
        channels = getattr(self._parts.model, "side_channels", None)
        return (
            self.sample.latents is None
            and channels is not None
            and (self._parts.model.vae is not None and not channels.count)
        )

    def use_cached_latents(self) -> None:
        """Estimate as if the dataset had latents in the place of images."""
        pixels, model = self.sample.pixel_values, self._parts.model
        assert pixels is not None, "the dataset has latents"
        height, width = (side // model.vae_scale_factor for side in pixels.shape[1:])
        latents = torch.empty(2 * model.latent_channels, height, width)  # moments
        self.sample = replace(self.sample, pixel_values=None, latents=latents)

    @property
    def blocks(self) -> int:
        """How many blocks of the denoiser could rest in the machine's memory."""
        return len(find_blocks(self._parts.model.denoiser))

    def estimate(self, mixed_precision: str, *, checkpointing: Checkpointed) -> Estimate:
        """The estimate at a precision; those with checkpointing come after those without."""
        key = mixed_precision, as_key(checkpointing)
        if key not in self._found:
            before = any(checkpoints for _, checkpoints in self._found)
            assert checkpointing or not before, "checkpoints are not taken out again"
            self._found[key] = self._trace(mixed_precision, checkpointing)
        return self._found[key]

    def _trace(self, mixed_precision: str, checkpointing: Checkpointed) -> Estimate:
        parts, config = self._parts, self.config
        networks, model = parts.networks, parts.model
        prepare_on_meta(
            model,
            networks,
            mixed_precision=mixed_precision,
            checkpointing=checkpointing,
            quantize=config.model.quantize,
        )
        spared = spared_bytes(model.denoiser, config.model.offload_blocks)
        every = [*self._modules, *([] if model.vae is None else [model.vae])]
        trained = bytes_of(self.trained)
        other = [e for (p, _), e in self._found.items() if p == mixed_precision]
        return Estimate(
            weights=bytes_of(t for part in every for t in stored(part)) - spared,
            average=trained if config.ema else 0,
            state=self._state[0],
            trained=trained,
            gradients=bytes_of(self._stepped),
            keeps_gradients=self._keeps_gradients,
            optimizer_step=self._state[1],
            steps_within=config.optimizer.fused_backward,
            step=self._step(mixed_precision, checkpointing, every),
            sampling=other[0].sampling if other else self._sampling(mixed_precision),
            repeats=config.train.minibatch_repeat,
            rounding=sum(bytes_spared(part) for part in model.components().values()),
            resting=spared_bytes(model.denoiser, None) - spared,
        )

    @property
    def _keeps_gradients(self) -> bool:
        train = self.config.train
        return train.gradient_accumulation_steps > 1 or self._parts.prior is not None

    def _step(
        self, mixed_precision: str, checkpointing: Checkpointed, modules: Sequence[Any]
    ) -> Peak:
        """The step's peak; bf16 and fp16 differ in nothing but the VAE."""
        parts, low = self._parts, mixed_precision != "no"
        encodes = self.sample.latents is None
        key = (mixed_precision if encodes else low, as_key(checkpointing))
        if key not in self._steps:
            repeats = self.config.train.minibatch_repeat
            run = stand_in(parts.model, parts.networks, parts.objective, repeats)
            self._steps[key] = trace_step(
                partial(kind_of(self.config).trainer.loss, run),
                self.sample,
                modules,
                mixed_precision=mixed_precision,
                keeps_gradients=self._keeps_gradients,
                frees_gradients=self.config.optimizer.fused_backward,
            )
        return self._steps[key]

    def _sampling(self, mixed_precision: str) -> int:
        sampler, model = self._parts.sampler, self._parts.model
        if not hasattr(sampler, "largest_batch") or model.denoiser is None:
            return 0
        picture, count, guides = sampler.largest_batch()
        return trace_sampling(
            model,
            list(self._parts.networks.values()),
            size=picture.size,
            count=count,
            guided=picture.guidance_scale != 1.0,
            extras={key: guide.to(META) for key, guide in guides.items()},
            mixed_precision=mixed_precision,
            tome=bool(getattr(sampler, "tome", False)),
        )


def largest_sample(datasets: Sequence[Any]) -> Sample:
    """The image of the largest bucket of all datasets, as it is trained on."""
    found: list[tuple[int, Sample]] = []
    for dataset in datasets:
        sizes = getattr(dataset, "bucket_sizes", None) or [(0, 0)] * len(dataset.buckets)
        pairs = zip(sizes, dataset.buckets, strict=False)
        filled = [(width * height, bucket[0]) for (width, height), bucket in pairs if len(bucket)]
        sample = dataset[max(filled)[1]]
        found.append((_area(sample), sample))
    return max(found, key=lambda each: each[0])[1]


def _area(sample: Sample) -> int:
    values = sample.pixel_values if sample.latents is None else sample.latents
    return 0 if values is None else values[0].numel()


def card_memory() -> int | None:
    """Bytes of the first card, if there is one."""
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
