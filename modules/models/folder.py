"""A model written as a diffusers directory, which pipelines load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import __version__

from modules.models.pieces import save_piece, write_json
from modules.models.portable import save_text_encoder, save_tokenizer

if TYPE_CHECKING:
    from modules.models.model import Model


def save_folder(model: Model, directory: Path, *, dtype: torch.dtype) -> None:
    """Write every piece in `dtype`, the scheduler and model_index.json.

    What was not trained is read again from the checkpoint, since the one in memory may have been
    rounded to the precision of the computation.
    """
    for name, piece in model.pieces().items():
        if name.startswith("tokenizer"):
            save_tokenizer(piece, directory / name)
        elif name.startswith("text_encoder"):
            save_text_encoder(model.as_trained(name), directory / name, dtype)
        else:
            save_piece(model.as_trained(name), directory / name, dtype)
    scheduler = model.scheduler_config()
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    write_json(directory / "model_index.json", _index(model, scheduler))


def _index(model: Model, scheduler: dict[str, Any]) -> dict[str, Any]:
    original = model.checkpoint.index if model.checkpoint else {}  # its switches are kept
    index = {
        **{key: value for key, value in original.items() if isinstance(value, bool)},
        **model.absent,
        "_class_name": model.pipeline,
        "_diffusers_version": __version__,  # its inpainting pipeline does not load without
        "scheduler": ["diffusers", scheduler.get("_class_name", "DDPMScheduler")],
    }
    for name, piece in model.pieces().items():
        library = "transformers" if name.startswith(("text_encoder", "tokenizer")) else "diffusers"
        index[name] = [library, type(piece).__name__]
    return index
