"""The pieces of one checkpoint and what a trainer asks of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.models import layers
from modules.models.checkpoint import Checkpoint, is_wanted, piece_loaders
from modules.models.fit import check_image_size
from modules.models.folder import save_folder
from modules.models.full_file import file_layout, save_single_file
from modules.models.inpainting import find_side_channels
from modules.models.patterns import matches
from modules.models.portable import classic_name
from modules.models.spaces import Latents, Pixels, Space
from modules.models.text_encoder import TextEncoder
from modules.objectives import Diffusion, objective_of


class DiffusionModel:
    """The pieces of one checkpoint and the four things a trainer asks of them.

    A family is a subclass: it says what pieces there are and how prompts and images become the
    tensors of its denoiser.
    """

    pipeline: str
    """Its class in diffusers, as model_index.json names it; of the plain model on the class."""
    piece_classes: ClassVar[Mapping[str, Any]]
    """Classes of the pieces by their names in a checkpoint, which are those of `__init__`."""
    absent: ClassVar[Mapping[str, Any]] = {}
    """What a saved model_index.json says of pieces that the pipeline may have and we don't."""
    adapter_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes in which adapters find Linear and 1x1 convolutions, by component."""
    conv_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Classes whose layers are added when an adapter covers k x k convolutions."""
    component_prefixes: ClassVar[Mapping[str, str]]
    """Component -> its prefix in adapter files: "unet" -> "lora_unet"."""

    clip_skip: int = 1  # hidden states of the text encoders that are read, from the last one
    text_needs_gradients: bool = True
    changed: frozenset[str] = frozenset()  # components that a network was merged into
    scheduler_changes: Mapping[str, Any] = MappingProxyType({})  # since the checkpoint was loaded
    prediction_source: str | None = "its scheduler"  # what says the type; None: nothing does

    def __init__(
        self,
        *,
        denoiser: Any,
        text_encoders: Sequence[TextEncoder],
        vae: Any | None,  # None: pixel space
        scheduler: Any,
        path: str,
    ):
        self.denoiser = denoiser
        self.text_encoders = list(text_encoders)
        self.vae = vae
        self.scheduler = scheduler
        self.path = path
        self.side_channels = find_side_channels(self)
        self.pipeline = self.side_channels.pipeline(self.pipeline)
        self.checkpoint: Checkpoint | None = None
        self._originals: Mapping[str, Callable[..., Any]] = {}

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, vae: str | None, weights: bool | Collection[str]
    ) -> Self:
        """Load the pieces of a checkpoint, or another VAE; without weights they stay on `meta`.

        `weights` may name the pieces that are wanted whole: `text_encoder`.

        Raises:
            ValueError: pieces are missing, can't be read or don't fit together.
        """
        originals = piece_loaders(checkpoint, cls.piece_classes, vae=vae)
        model = cls(
            **{name: load(weights=is_wanted(name, weights)) for name, load in originals.items()},
            scheduler=DDPMScheduler.from_config(checkpoint.scheduler_config()),
            path=checkpoint.path,
        )
        model.checkpoint, model._originals = checkpoint, originals
        model.prediction_source = checkpoint.prediction_source
        return model

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype) -> None:
        """Write the pieces as a diffusers directory."""
        save_folder(self, directory, dtype=dtype)

    def check_single_file(self) -> None:
        """Raise ValueError if there is no single file for models of this kind."""
        file_layout(self)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        """Write the pieces as one .safetensors in the original layout."""
        save_single_file(self, path, dtype=dtype, metadata=metadata)

    def pieces(self) -> dict[str, Any]:
        """Everything that a checkpoint has a folder for, but the scheduler, by its name there."""
        found: dict[str, Any] = {"unet": self.denoiser}
        for number, encoder in enumerate(self.text_encoders):
            ending = f"_{number + 1}" if number else ""
            found[f"text_encoder{ending}"] = encoder.module
            found[f"tokenizer{ending}"] = encoder.tokenizer
        return found if self.vae is None else {**found, "vae": self.vae}

    def as_trained(self, name: str) -> Any:
        """A piece as it should be saved: read again from the checkpoint if it was not changed."""
        if self.is_changed(name) or name not in self._originals:
            return self.pieces()[name]
        return self._originals[name]()

    def is_changed(self, name: str) -> bool:
        """Whether a piece is trained, or a network was merged into it."""
        piece, components = self.pieces()[name], self.components()
        return any(parameter.requires_grad for parameter in piece.parameters()) or any(
            components[component] is piece for component in self.changed
        )

    def scheduler_config(self) -> dict[str, Any]:
        """The checkpoint's scheduler, with what training changed of it."""
        own = self.checkpoint.scheduler_config() if self.checkpoint else self.scheduler.config
        config = {**own, **self.scheduler_changes}
        if config.get("rescale_betas_zero_snr"):  # not every scheduler knows it, DDIM does
            config["_class_name"] = "DDIMScheduler"
        return config

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
        if not text:
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
        return self.denoiser(
            inputs.channels,
            inputs.timestep,
            encoder_hidden_states=inputs.encoder_hidden_states,
            added_cond_kwargs=dict(inputs.added_cond_kwargs) or None,
            **inputs.residuals,
        ).sample

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

    def idle_paths(self) -> Sequence[str]:
        """Parts of the components, by module path, that have no effect on the denoiser."""
        return ()

    def parameters_matching(self, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
        """Parameters of the base by module path; see `modules.models.layers`."""
        return layers.parameters_matching(self, patterns)

    def adapter_layers(self, patterns: Iterable[str], *, conv: bool) -> dict[str, nn.Module]:
        """Layers for an adapter by module path; see `modules.models.layers`."""
        return layers.adapter_layers(self, patterns, conv=conv)

    def module_paths(self) -> Iterator[str]:
        """Paths of all modules of all components."""
        return layers.module_paths(self)

    def classic_path(self, component: str, path: str) -> str:
        """A module's path within its component as adapter files have it."""
        module = self.components()[component]
        return classic_name(module, path) if component.startswith("text_encoders") else path
