"""A checkpoint on disk, read piece by piece; families don't know what kind of files it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from modules.models.pieces import check_pieces, load_piece, load_vae, read_index


class Checkpoint(Protocol):
    """The pieces of a base model, under diffusers' names: unet, text_encoder, tokenizer_2, vae."""

    path: str  # as the person gave it
    index: Mapping[str, Any]  # model_index.json's; `_class_name` tells the family
    prediction_source: str | None  # what says the prediction type, in words; None: nothing does

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError if pieces are missing; list them."""
        ...

    def load(self, name: str, cls: Any, *, weights: bool = True) -> Any:
        """A module in float32; without weights it stays on `meta`."""
        ...

    def load_tokenizer(self, name: str, cls: Any) -> Any: ...

    def config(self, name: str) -> dict[str, Any]:
        """The config of a piece; empty if there is none."""
        ...

    def scheduler_config(self) -> dict[str, Any]: ...


class DiffusersFolder:
    """A checkpoint as a diffusers directory, a folder for each piece.

    Raises:
        ValueError: the directory is none, or its scheduler contradicts `prediction_type`.
    """

    prediction_source: str | None = "its scheduler"

    def __init__(
        self, directory: Path, *, path: str | None = None, prediction_type: str | None = None
    ):
        self.directory = directory
        self.path = str(directory) if path is None else path
        self.index = read_index(directory, self.path)
        if prediction_type is not None:
            self._check_prediction(prediction_type)

    def check(self, names: Sequence[str]) -> None:
        """Check that every piece has its folder with a config in it.

        Raises:
            ValueError: lists what is missing.
        """
        check_pieces(self.directory, names)

    def load(self, name: str, cls: Any, *, weights: bool = True) -> Any:
        """Load a module in float32; without weights it stays on `meta`.

        Raises:
            ValueError: the folder has no weights, or they can't be read.
        """
        return load_piece(cls, self.directory / name, weights=weights)

    def load_tokenizer(self, name: str, cls: Any) -> Any:
        """Load a tokenizer."""
        return cls.from_pretrained(self.directory / name)

    def config(self, name: str) -> dict[str, Any]:
        """The config of a piece; empty if there is none."""
        file = self.directory / name / "config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's settings as the checkpoint has them."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.load_config(self.directory / "scheduler")

    def _check_prediction(self, told: str) -> None:
        check_pieces(self.directory, ["scheduler"])
        own = self.scheduler_config().get("prediction_type", "epsilon")
        if own != told:
            raise ValueError(
                f"{self.path}: model.prediction_type says {told}, but the scheduler of the model "
                f"says {own}; take model.prediction_type out, or mend "
                "scheduler/scheduler_config.json if that is wrong"
            )


def piece_loaders(
    checkpoint: Checkpoint, classes: Mapping[str, Any], *, vae: str | None
) -> dict[str, Callable[..., Any]]:
    """What loads each piece of a family, called with `weights`; `vae` is another one's path.

    Raises:
        ValueError: pieces are missing, or there is no VAE that could be replaced.
    """
    if vae is not None and "vae" not in classes:
        raise ValueError(f"{checkpoint.path}: works on pixels and has no VAE; take vae ({vae}) out")
    config = partial(checkpoint.config, "vae")
    replaced = {"vae": partial(load_vae, vae, config=config)} if vae is not None else {}
    checkpoint.check([*(name for name in classes if name not in replaced), "scheduler"])
    own = {name: partial(_load, checkpoint, name, kind) for name, kind in classes.items()}
    return {**own, **replaced}


def _load(checkpoint: Checkpoint, name: str, kind: Any, *, weights: bool = True) -> Any:
    if name.startswith("tokenizer"):
        return checkpoint.load_tokenizer(name, kind)
    return checkpoint.load(name, kind, weights=weights)


def is_wanted(name: str, weights: bool | Collection[str]) -> bool:
    """Whether the weights of a piece are to be loaded: all, none, or those of the names."""
    return weights if isinstance(weights, bool) else name in weights
