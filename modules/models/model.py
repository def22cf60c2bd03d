"""The pieces of one checkpoint: what of them can be trained, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import DDPMScheduler
from torch import nn

from modules.models import layers
from modules.models.checkpoint import Checkpoint, is_wanted, piece_loaders
from modules.models.folder import save_folder
from modules.models.patterns import matches
from modules.models.quantized import is_quantized
from modules.models.text_encoder import TextEncoder
from modules.models.verification import verify_folder
from modules.verification import Verified

if TYPE_CHECKING:
    from modules.block_offload import BlockOffload
    from modules.graphed_denoiser import GraphedDenoiser


class Model:
    """The pieces of one checkpoint; a subclass says what can be done with them."""

    pipeline: str
    """Its class in diffusers, as model_index.json names it; of the plain model on the class."""
    piece_classes: ClassVar[Mapping[str, Any]]
    """Classes of the pieces by their names in a checkpoint, which are those of `__init__`."""
    absent: ClassVar[Mapping[str, Any]] = {}
    """What a saved model_index.json says of pieces that the pipeline may have and we don't."""

    changed: frozenset[str] = frozenset()  # components that a network was merged into
    scheduler_changes: Mapping[str, Any] = MappingProxyType({})  # since the checkpoint was loaded
    prediction_source: str | None = "its scheduler"  # what says the type; None: nothing does
    denoiser_dtype: torch.dtype | None = None
    """What a frozen denoiser computes in by itself; None leaves it to mixed precision."""
    graphs: GraphedDenoiser | None = None
    """Calls the denoiser by CUDA graphs."""
    offload: BlockOffload | None = None
    """Brings the weights of the denoiser's blocks that rest in the machine's memory."""

    def __init__(
        self,
        *,
        denoiser: Any | None,
        text_encoders: Sequence[TextEncoder],
        vae: Any | None,
        scheduler: Any | None,
        path: str,
    ):
        self.denoiser: Any = denoiser
        self.text_encoders = list(text_encoders)
        self.vae = vae
        self.scheduler: Any = scheduler
        self.path = path
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

    def verify_pretrained(self, directory: Path, *, dtype: torch.dtype) -> Verified:
        """Check a written directory against what was trained; raises ValueError if it differs."""
        return verify_folder(self, directory, dtype=dtype)

    def pieces(self) -> dict[str, Any]:
        """Everything that a checkpoint has a folder for, but the scheduler, by its name there."""
        found: dict[str, Any] = {"unet": self.denoiser}
        for number, encoder in enumerate(self.text_encoders):
            ending = f"_{number + 1}" if number else ""
            found[f"text_encoder{ending}"] = encoder.module
            found[f"tokenizer{ending}"] = encoder.tokenizer
        return found if self.vae is None else {**found, "vae": self.vae}

    def as_trained(self, name: str) -> Any:
        """A piece as it should be saved: read again from the checkpoint if it was not changed.

        Raises:
            ValueError: it was changed, and then rounded to 8 bits.
        """
        if self.is_changed(name) or name not in self._originals:
            piece = self.pieces()[name]
            if is_quantized(piece):
                raise ValueError(
                    f"{name}: its weights are stored in 8 bits (model.quantize), and what is "
                    "rounded so is not saved as a model; take model.quantize out"
                )
            return piece
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

    def idle_paths(self) -> Sequence[str]:
        """Parts of the components, by module path, that have no effect on the denoiser."""
        return ()

    def parameters_matching(self, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
        """Parameters of the base by module path; see `modules.models.layers`."""
        return layers.parameters_matching(self, patterns)

    def module_paths(self) -> Iterator[str]:
        """Paths of all modules of all components."""
        return layers.module_paths(self)
