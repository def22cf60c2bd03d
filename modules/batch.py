"""Plain data between the parts: a dataset's sample, a batch, a denoiser's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a dataset, without a batch dimension; shapes as in `Batch`."""

    name: str
    caption: str
    pixel_values: Tensor | None = None  # (3, H, W) in [-1, 1]
    latents: Tensor | None = None  # (C, h, w), unscaled VAE output, or (2C, h, w), its moments
    mask: Tensor | None = None  # (1, h, w)
    original_size: tuple[int, int] | None = None  # height, width before resizing
    crop_top_left: tuple[int, int] | None = None  # top, left in the resized image
    loss_weight: float = 1.0  # of this image beside others
    text: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    index: int | None = None  # with which it was asked for, where a run reads it


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the dataloader yields. All images of a batch share one bucket."""

    captions: list[str]
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)  # of its images, where a run reads them
    pixel_values: Tensor | None = None  # (B, 3, H, W) in [-1, 1]
    latents: Tensor | None = None  # (B, C, h, w), unscaled VAE output, or 2C moments
    mask: Tensor | None = None  # (B, 1, h, w), weight of each position in the loss
    original_size: Tensor | None = None  # (B, 2) height, width before resizing
    crop_top_left: Tensor | None = None  # (B, 2)
    loss_weight: Tensor | None = None  # (B,), of each image; None where all count alike
    text: Mapping[str, Tensor] = field(default_factory=dict)  # cached outputs of `encode_text`
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # what networks ask for
    is_negative: Tensor | None = None  # (B,) bool: the negative prompts of guidance, if any

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to `device`, without waiting for the copy where memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the dataloader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Every tensor of it."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self._map(note)
        return found

    def repeat(self, count: int) -> Batch:
        """Return the batch with each image `count` times, one beside the other."""
        if count == 1:
            return self
        repeated = self._map(lambda tensor: tensor.repeat_interleave(count, dim=0))
        return replace(
            repeated,
            captions=[caption for caption in self.captions for _ in range(count)],
            names=[name for name in self.names for _ in range(count)],
            indices=[index for index in self.indices for _ in range(count)],
        )

    def weigh(self, losses: Tensor) -> Tensor:
        """Multiply the losses of its images, (B,), by the images' weights."""
        return losses if self.loss_weight is None else losses * self.loss_weight

    def _map(self, move) -> Batch:
        values = {key: _map_tensors(value, move) for key, value in vars(self).items()}
        return Batch(**values)


@dataclass(frozen=True, kw_only=True)
class DenoiserInputs:
    """Arguments of one denoiser call, under diffusers' own names."""

    sample: Tensor  # (B, C, h, w)
    timestep: Tensor  # (B,)
    encoder_hidden_states: Tensor  # (B, tokens, D)
    side_channels: Tensor | None = None  # (B, D, h, w), behind the sample, not noised
    added_cond_kwargs: Mapping[str, Tensor] = field(default_factory=dict)
    residuals: Mapping[str, Any] = field(default_factory=dict)  # ControlNet's

    @property
    def channels(self) -> Tensor:
        """What the denoiser sees: the sample, and behind it the side channels if there are any."""
        if self.side_channels is None:
            return self.sample
        return torch.cat([self.sample, self.side_channels.to(self.sample.dtype)], dim=1)

    def to(self, dtype: torch.dtype) -> DenoiserInputs:
        """Return the same with sample, text and residuals in a dtype.

        Times and sizes stay as they are: in half precision they would be others.
        """
        return replace(
            self,
            sample=self.sample.to(dtype),
            encoder_hidden_states=self.encoder_hidden_states.to(dtype),
            residuals=_cast(self.residuals, dtype),
        )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of floats in a dtype, in whatever mapping or list."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _cast(each, dtype) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one bucket to a batch.

    A field that only some samples have is an error, except `mask`: an image without one counts
    fully, so its mask is all ones.

    Raises:
        ValueError: tensors of a field differ in shape; names the images.
    """
    masks = [sample.mask for sample in samples]
    if any(mask is not None for mask in masks):
        known = next(mask for mask in masks if mask is not None)
        masks = [torch.ones_like(known) if mask is None else mask for mask in masks]
    weights = [sample.loss_weight for sample in samples]
    return Batch(
        captions=[sample.caption for sample in samples],
        names=[sample.name for sample in samples],
        indices=[sample.index for sample in samples if sample.index is not None],
        pixel_values=_stack(samples, "pixel_values", [s.pixel_values for s in samples]),
        latents=_stack(samples, "latents", _alike([s.latents for s in samples])),
        mask=_stack(samples, "mask", masks),
        original_size=_stack(samples, "original_size", [s.original_size for s in samples]),
        crop_top_left=_stack(samples, "crop_top_left", [s.crop_top_left for s in samples]),
        loss_weight=torch.tensor(weights) if set(weights) != {1.0} else None,
        text=_stack_by_key(samples, [sample.text for sample in samples]),
        extras=_stack_by_key(samples, [sample.extras for sample in samples]),
    )


def _alike(latents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Latents beside moments of others become moments without variance, (2C, h, w)."""
    channels = {len(each) for each in latents if each is not None}
    if len(channels) != 2 or max(channels) != 2 * min(channels):
        return list(latents)
    return [
        torch.cat([each, torch.full_like(each, -torch.inf)])
        if each is not None and len(each) == min(channels)
        else each
        for each in latents
    ]


def _stack_by_key(
    samples: Sequence[Sample], values: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    keys = dict.fromkeys(key for each in values for key in each)
    stacked = {key: _stack(samples, key, [each.get(key) for each in values]) for key in keys}
    return {key: tensor for key, tensor in stacked.items() if tensor is not None}


def _stack(samples: Sequence[Sample], key: str, values: list) -> Tensor | None:
    missing = [s.name for s, value in zip(samples, values, strict=True) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise ValueError(f"{missing[0]}: has no {key}, but other images of its batch have one")
    tensors = [value if isinstance(value, Tensor) else torch.tensor(value) for value in values]
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        shapes = {s.name: tuple(t.shape) for s, t in zip(samples, tensors, strict=True)}
        raise ValueError(f"{key} of one batch differ in shape: {shapes}; one bucket, one shape")
    return torch.stack(tensors)


def _map_tensors(value: Any, move) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, move) for key, item in value.items()}
    return value
