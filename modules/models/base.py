"""The pieces of one checkpoint and what a trainer asks of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.models.patterns import matches, no_match
from modules.models.text_encoder import TextEncoder
from modules.objectives import OBJECTIVES, Diffusion


class DiffusionModel:
    """The pieces of one checkpoint and the four things a trainer asks of them.

    A family is a subclass: it says how to load and save the pieces and how prompts and images
    become the tensors of its denoiser.
    """

    adapter_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes in which adapters find Linear and 1x1 convolutions, by component."""
    conv_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes whose layers are added when an adapter covers k x k convolutions."""
    component_prefixes: ClassVar[Mapping[str, str]]
    """Component -> its prefix in adapter files: "unet" -> "lora_unet"."""

    denoiser: Any
    text_encoders: list[TextEncoder]
    vae: Any | None  # None: pixel space
    text_needs_gradients: bool = True
    changed: frozenset[str] = frozenset()  # components that a network was merged into
    scheduler: Any
    scheduler_changes: Mapping[str, Any] = MappingProxyType({})  # since the checkpoint was loaded
    path: str

    @classmethod
    def from_pretrained(
        cls, directory: Path, *, path: str, vae: str | None, weights: bool | Collection[str]
    ) -> DiffusionModel:
        """Load the pieces from a diffusers directory; without weights they stay on `meta`.

        `weights` may name the pieces that are wanted whole: `text_encoder`.
        """
        raise TypeError(f"{cls.__name__} cannot be loaded")

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype) -> None:
        """Write the pieces as a diffusers directory."""
        raise TypeError(f"{type(self).__name__} cannot be saved")

    def use_scheduler(self, scheduler: Any) -> None:
        """Take over the schedule that is trained for: images are drawn and the model saved so."""
        before, after = self.scheduler.config, scheduler.config
        changes = {key: value for key, value in after.items() if before.get(key) != value}
        self.scheduler_changes = {**self.scheduler_changes, **changes}
        self.scheduler = scheduler

    def mark_changed(self, paths: Iterable[str]) -> None:
        """Note that weights on these paths are no longer the checkpoint's, though not trained."""
        self.changed |= {c for c in self.components() for path in paths if matches(path, c)}

    def components(self) -> dict[str, nn.Module]:
        """The trainable pieces by the first part of their module path."""
        encoders = {f"text_encoders.{i}": te.module for i, te in enumerate(self.text_encoders)}
        return {"unet": self.denoiser, **encoders}

    def base_version(self) -> dict[str, str]:
        """Metadata by which other programs tell this family."""
        return {}

    # -- the four verbs ---------------------------------------------------------------------

    def encode(self, batch: Batch) -> Batch:
        """The batch with latents and text-encoder outputs, made here if they aren't cached."""
        text = batch.text
        if not text:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_needs_gradients):
                text = self.encode_text(batch.captions)
        return replace(batch, latents=self._latents(batch), text=text)

    def encode_images(self, batch: Batch) -> Tensor:
        """Scaled latents of a batch, (B, C, h, w): cached ones, or the VAE's of its pixels."""
        assert self.vae is not None
        return self._latents(batch) * self.vae.config.scaling_factor

    def _latents(self, batch: Batch) -> Tensor:
        assert self.vae is not None
        if batch.latents is not None:
            return batch.latents
        if batch.pixel_values is None:
            raise ValueError("the dataset gave neither latents nor pixel_values")
        with torch.no_grad(), full_precision(batch.pixel_values.device):
            posterior = self.vae.encode(batch.pixel_values.to(self.vae.dtype)).latent_dist
            return posterior.sample().float()

    def encode_prompts(self, batch: Batch) -> dict[str, Any]:
        """`encoder_hidden_states` (B, tokens, D) and what else the denoiser wants of captions."""
        return dict(batch.text) or self.encode_text(batch.captions)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The text encoders' outputs, which depend on the captions alone and can be cached."""
        raise TypeError(f"{type(self).__name__} cannot encode captions")

    def denoise(self, inputs: DenoiserInputs) -> Tensor:
        """The denoiser's prediction, (B, C, h, w)."""
        return self.denoiser(
            inputs.sample,
            inputs.timestep,
            encoder_hidden_states=inputs.encoder_hidden_states,
            added_cond_kwargs=dict(inputs.added_cond_kwargs) or None,
            **inputs.residuals,
        ).sample

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents (B, C, h, w)."""
        assert self.vae is not None
        with full_precision(latents.device):
            latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
            pixels = torch.cat([self.vae.decode(one).sample for one in latents.split(1)])
        pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return [Image.fromarray(p.numpy()) for p in pixels.permute(0, 2, 3, 1).cpu()]

    def default_objective(self) -> type[Diffusion]:
        """The objective that the checkpoint was trained with."""
        prediction_type = self.scheduler.config.prediction_type
        if prediction_type not in OBJECTIVES:
            raise ValueError(
                f"{self.path}: prediction type {prediction_type!r} is not one of "
                f"{', '.join(OBJECTIVES)}"
            )
        return OBJECTIVES[prediction_type]

    def text_fingerprint(self) -> str:
        """A hash of all that `encode_text` depends on beside the captions."""
        parts = [type(self).__name__, *(encoder.fingerprint() for encoder in self.text_encoders)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    # -- shapes -----------------------------------------------------------------------------

    @property
    def latent_channels(self) -> int:
        """Channels of the denoiser's sample."""
        return self.denoiser.config.in_channels

    @property
    def text_width(self) -> int:
        """Numbers of one token in `encoder_hidden_states`."""
        return self.denoiser.config.cross_attention_dim

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of one latent position along a side."""
        assert self.vae is not None
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    # -- finding modules --------------------------------------------------------------------

    def parameters_matching(self, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
        """Parameters of the base by module path, where a pattern matches.

        Raises:
            ValueError: a pattern matches nothing; names it and what the model has.
        """
        named = {
            f"{component}.{name}": parameter
            for component, module in self.components().items()
            for name, parameter in module.named_parameters()
        }
        chosen: set[str] = set()
        for pattern in patterns:
            found = {path for path in named if matches(path, pattern)}
            if not found:
                raise ValueError(no_match(pattern, self.module_paths()))
            chosen |= found
        return {path: parameter for path, parameter in named.items() if path in chosen}

    def adapter_layers(self, patterns: Iterable[str], *, conv: bool) -> dict[str, nn.Module]:
        """Linear and convolution layers for an adapter, by module path, in the model's order.

        Taken are the family's transformer layers that a pattern covers, with `conv` also those of
        its convolution blocks, and single layers whose own name a pattern ends in.

        Raises:
            ValueError: a pattern covers no such layer; names it and what the model has.
        """
        patterns = list(patterns)
        found: dict[str, nn.Module] = {}
        used: set[str] = set()
        for component, module in self.components().items():
            covered = set(self._covered_paths(component, module, conv=conv))
            for name, layer in module.named_modules():
                path, own = f"{component}.{name}", f".{name.rpartition('.')[2]}"
                if not isinstance(layer, nn.Linear | nn.Conv2d):
                    continue
                hits = {p for p in patterns if name in covered and matches(path, p)}
                hits |= {p for p in patterns if p.endswith(own) and fnmatchcase(path, p)}
                if hits:
                    found[path] = layer
                    used |= hits
        for pattern in (unused for unused in patterns if unused not in used):
            if any(matches(path, pattern) for path in self.module_paths()):
                raise ValueError(
                    f"{pattern!r} has no layer that this network adapts by default; name a single "
                    "layer in full" + ("" if conv else ", or set conv_rank for convolution blocks")
                )
            raise ValueError(no_match(pattern, self.module_paths()))
        return found

    def _covered_paths(self, component: str, module: nn.Module, *, conv: bool) -> Iterator[str]:
        kind = component.partition(".")[0]
        classes = self.adapter_targets.get(kind, ())
        conv_classes = self.conv_targets.get(kind, ()) if conv else ()
        for name, block in module.named_modules():
            everything = type(block).__name__ in conv_classes
            if not everything and type(block).__name__ not in classes:
                continue
            for inner, layer in block.named_modules(prefix=name):
                small = not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1)
                if everything or small:
                    yield inner

    def module_paths(self) -> Iterator[str]:
        """Paths of all modules of all components."""
        for component, module in self.components().items():
            yield component
            yield from (f"{component}.{name}" for name, _ in module.named_modules() if name)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off: the VAE overflows in float16."""
    with torch.autocast(device.type, enabled=False):
        yield
