"""The pieces of one checkpoint and what a trainer asks of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.mixed_precision import without_autocast
from modules.models import layers
from modules.models.fit import check_image_size
from modules.models.full_file import save_single_file
from modules.models.inpainting import find_side_channels
from modules.models.layouts import file_layout
from modules.models.model import Model
from modules.models.portable import classic_name
from modules.models.spaces import Latents, Pixels, Space
from modules.models.text_encoder import TextEncoder
from modules.models.verification import verify_single_file
from modules.objectives import Diffusion, objective_of
from modules.text_memory import TextMemory
from modules.verification import Verified


class DiffusionModel(Model):
    """The pieces of one checkpoint and the four things a trainer asks of them.

    A family is a subclass: it says what pieces there are and how prompts and images become the
    tensors of its denoiser.
    """

    adapter_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes in which adapters find Linear and 1x1 convolutions, by component."""
    conv_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes whose layers are added when an adapter covers k x k convolutions."""
    component_prefixes: ClassVar[Mapping[str, str]]
    """Component -> its prefix in adapter files: "unet" -> "lora_unet"."""

    clip_skip: int = 1  # hidden states of the text encoders that are read, from the last one
    text_needs_gradients: bool = True
    text_memory: TextMemory | None = None  # outputs of text encoders that rest in the whole run

    def __init__(
        self,
        *,
        denoiser: Any,
        text_encoders: Sequence[TextEncoder],
        vae: Any | None,  # None: pixel space
        scheduler: Any,
        path: str,
    ):
        super().__init__(
            denoiser=denoiser, text_encoders=text_encoders, vae=vae, scheduler=scheduler, path=path
        )
        self.side_channels = find_side_channels(self)
        self.pipeline = self.side_channels.pipeline(self.pipeline)

    def check_single_file(self) -> None:
        """Raise ValueError if there is no single file for models of this kind."""
        file_layout(self)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        """Write the pieces as one .safetensors in the original layout."""
        save_single_file(self, path, dtype=dtype, metadata=metadata)

    def verify_single_file(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check a written file against what was trained; raises ValueError if it differs."""
        return verify_single_file(self, path, dtype=dtype)

    def describe(self) -> str:
        """What it is, in a few words."""
        told, source = self.scheduler.config.prediction_type, self.prediction_source
        prediction = f"{told} by {source}" if source else "prediction type to be measured"
        return f"{type(self).__name__}, {prediction}"

    def base_version(self) -> dict[str, str]:
        """Metadata by which other programs tell this family."""
        return {}

    def check_dataset(self, dataset: Any) -> None:
        """Check that a dataset gives what this family needs.

        Raises:
            ValueError: it doesn't.
        """
        several = getattr(dataset, "first_samples", None)  # of a mixture
        for sample in several() if several else [dataset[0]]:
            self.space.check(sample)
            self.side_channels.check(sample)

    # -- the four verbs ---------------------------------------------------------------------

    def encode(self, batch: Batch) -> Batch:
        """The batch with latents and text-encoder outputs, made here if they aren't cached."""
        text = batch.text
        if not text and self.text_memory is not None:
            text = self.text_memory(batch.captions)
        elif not text:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_needs_gradients):
                text = self.encode_text(batch.captions)
        return replace(batch, latents=self.space.encode(batch), text=text)

    def encode_images(self, batch: Batch) -> Tensor:
        """What is noised, (B, C, h, w): scaled latents, cached or the VAE's; or pixels."""
        return self.space.scale(self.space.encode(batch))

    def encode_prompts(self, batch: Batch) -> dict[str, Any]:
        """`encoder_hidden_states` (B, tokens, D) and what else the denoiser is conditioned on."""
        text = batch.text or self.encode_text(batch.captions)
        return {**text, "side_channels": self.side_channels.make(batch)}

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The text encoders' outputs, which depend on the captions alone and can be cached."""
        raise TypeError(f"{type(self).__name__} cannot encode captions")

    def denoise(self, inputs: DenoiserInputs) -> Tensor:
        """The denoiser's prediction, (B, C, h, w)."""
        if self.denoiser_dtype is None:
            return self._denoise(inputs)
        with without_autocast(inputs.sample.device.type):
            return self._denoise(inputs.to(self.denoiser_dtype))

    def _denoise(self, inputs: DenoiserInputs) -> Tensor:
        given = {
            "encoder_hidden_states": inputs.encoder_hidden_states,
            "added_cond_kwargs": dict(inputs.added_cond_kwargs) or None,
            **inputs.residuals,
        }
        if self.graphs is not None:
            return self.graphs(inputs.channels, inputs.timestep, **given)
        return self.denoiser(inputs.channels, inputs.timestep, **given).sample

    def decode(self, clean: Tensor) -> list[Image.Image]:
        """Pictures of what `encode_images` gives, (B, C, h, w)."""
        return self.space.decode(clean)

    def default_objective(self) -> type[Diffusion]:
        """The objective that the checkpoint was trained with."""
        return objective_of(self.scheduler.config.prediction_type, self.path)

    def text_fingerprint(self) -> str:
        """A hash of all that `encode_text` depends on beside the captions."""
        parts = [type(self).__name__, str(self.clip_skip)]
        parts += [encoder.fingerprint() for encoder in self.text_encoders]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    # -- shapes -----------------------------------------------------------------------------

    @property
    def latent_channels(self) -> int:
        """Channels of the denoiser's sample."""
        return self.denoiser.config.in_channels - self.side_channels.count

    @property
    def text_width(self) -> int:
        """Numbers of one token in `encoder_hidden_states`."""
        return self.denoiser.config.cross_attention_dim

    @property
    def space(self) -> Space:
        """Where the denoiser works: latents of the VAE, or pixels."""
        return Pixels() if self.vae is None else Latents(self.vae)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of one position of the denoiser's sample along a side."""
        return self.space.scale_factor

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def image_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Width and height of images to draw; None is a side of those the model was made for.

        Raises:
            ValueError: the model can't draw images of this size.
        """
        native = self.denoiser.config.sample_size * self.vae_scale_factor
        size = (native if width is None else width, native if height is None else height)
        check_image_size(size, self.size_multiple)
        return size

    # -- finding modules --------------------------------------------------------------------

    def adapter_layers(self, patterns: Iterable[str], *, conv: bool) -> dict[str, nn.Module]:
        """Layers for an adapter by module path; see `modules.models.layers`."""
        return layers.adapter_layers(self, patterns, conv=conv)

    def classic_path(self, component: str, path: str) -> str:
        """A module's path within its component as adapter files have it."""
        module = self.components()[component]
        return classic_name(module, path) if component.startswith("text_encoders") else path

    def known_paths(self, component: str, path: str) -> Sequence[str]:
        """All paths under which adapter files have a module of a component."""
        return [self.classic_path(component, path), path]
