"""A base model in one file of the original layout, .safetensors or .ckpt, as a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from modules.models.clip_tokenizer import make_tokenizer
from modules.models.filling import check_tensors, fill, make_module
from modules.models.layouts import (
    UNET,
    V_PREDICTION,
    ZERO_SNR,
    Shapes,
    find_layout,
    published_config,
)
from modules.models.original_names import places
from modules.models.tensor_file import open_tensors
from modules.models.unpublished import own_configs


class SingleFile:
    """A checkpoint in one file; its configs and tokenizers are the repository's own.

    Args:
        path: as the person gave it.
        prediction_type: what the person says of the model; None asks the file.

    Raises:
        ValueError: it is no base model of a known kind, can't be read, or says otherwise.
    """

    def __init__(self, file: Path, *, path: str | None = None, prediction_type: str | None = None):
        self.path = str(file) if path is None else path
        self._file = open_tensors(file)
        self._names = {_today(name): name for name in self._file.shapes}
        self._shapes: Shapes = {n: self._file.shapes[old] for n, old in self._names.items()}
        self.layout = find_layout(self._shapes, self.path)
        self._own_configs = own_configs(self._file.metadata, self.path)
        self._told = prediction_type
        self.prediction_source = self._prediction_source()
        self.index: Mapping[str, Any] = {"_class_name": self._pipeline(), **self.layout.switches}

    def check(self, names: Sequence[str]) -> None:
        """Check that the file has every piece; tokenizers and scheduler come from the repository.

        Raises:
            ValueError: lists what is missing.
        """
        prefixes = {name: p for name, p in self.layout.prefixes.items() if name in names}
        missing = [n for n, p in prefixes.items() if not any(s.startswith(p) for s in self._shapes)]
        if missing:
            advice = "; name one in model.vae" if missing == ["vae"] else ""
            raise ValueError(f"{self.path}: the file has no {', no '.join(missing)}{advice}")

    def load(self, name: str, cls: Any, *, weights: bool = True) -> Any:
        """Load a module in float32; without weights it stays on `meta`.

        Raises:
            ValueError: tensors are missing, or have other shapes than this kind of model.
        """
        module = make_module(cls, self.config(name), weights=weights)
        where = places(name, module, self.layout)
        check_tensors(self._shapes, module, where, self.path)
        if weights:
            with self._file.reading() as read:
                fill(module, where, lambda new: read(self._names[new]))
        return module

    def load_tokenizer(self, name: str, cls: Any) -> Any:
        """Make a tokenizer of CLIP's vocabulary, or of that which the file brings."""
        return make_tokenizer(cls, self.config(name))

    def config(self, name: str) -> dict[str, Any]:
        """The config of a piece: the published one, with what the file says of itself."""
        config = {**published_config(self.layout, name), **self._own_configs.get(name, {})}
        if name == "unet":
            config["in_channels"] = self._in_channels()
        return config

    def scheduler_config(self) -> dict[str, Any]:
        """The published scheduler's settings, with the prediction type of this file."""
        config = self.config("scheduler")
        if self._told is not None or V_PREDICTION in self._shapes:
            config["prediction_type"] = self._told or "v_prediction"
        if ZERO_SNR in self._shapes:
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return config

    def unread(self, name: str, module: Any) -> dict[str, Tensor]:
        """Tensors of a text encoder that a module has no place for, as OpenCLIP's last layer."""
        used = {place.name for place in places(name, module, self.layout).values()}
        prefix = self.layout.prefixes[name]
        with self._file.reading() as read:
            return {
                new: read(old).clone()
                for new, old in self._names.items()
                if new.startswith(prefix) and new not in used
            }

    def _in_channels(self) -> int:
        shape = self._shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 4))
        return shape[1]

    def _pipeline(self) -> str:
        return self.layout.inpainting if self._in_channels() == 9 else self.layout.pipeline

    def _prediction_source(self) -> str | None:
        """What says the prediction type, in words; None if nothing does."""
        marked = V_PREDICTION in self._shapes
        if marked and self._told == "epsilon":
            raise ValueError(
                f"{self.path}: model.prediction_type says epsilon, but the file's marker "
                f"{V_PREDICTION} says v_prediction; take model.prediction_type out"
            )
        if marked:
            return f"the file's marker {V_PREDICTION}"
        if self._told is not None:
            return "model.prediction_type"
        return None if self.layout.name == "sd2" else "this kind of model without a marker"


def _today(name: str) -> str:
    """The name of a tensor in today's files: some of 2022 leave `text_model.` out."""
    return re.sub(
        r"^(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)",
        r"\1text_model.",
        name,
    )
