"""Whole base models as diffusers' directory and as one file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.files import replacing, replacing_directory
from modules.receipt_keys import BESIDE
from tools.command import check_new
from tools.containers import stored_dtype

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def convert_model(source: Path, output: Path, *, dtype: str | None = None) -> str:
    """Write a base model's directory as one file, or its file as a directory; returns its family.

    What a file says of itself stands beside a directory's pieces in `sd_trainer.json`.

    Raises:
        ValueError: it is no base model, has no form in one file, or `output` exists.
    """
    from modules.models import load
    from modules.models.layouts import UNET
    from modules.savers import DTYPES

    check_new(output)
    start, place = ("", source / "unet") if source.is_dir() else (UNET, source)
    metadata, model = _metadata(source), load(str(source))
    target = DTYPES[dtype or stored_dtype(place, start=start)]
    if model.prediction_source is None:
        logger.warning(
            "%s: doesn't say what it predicts; written is %s, mend scheduler_config.json if it "
            "is another",
            *(source, model.scheduler.config.prediction_type),
        )
    if source.is_dir():
        model.check_single_file()
        told = {"modelspec.title": output.stem, **metadata}
        with replacing(output) as temporary:
            model.save_single_file(temporary, dtype=target, metadata=told)
    else:
        write_model_directory(model, output, dtype=target, metadata=metadata)
    return type(model).__name__


def write_model_directory(
    model: Any, output: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write a diffusers directory that is whole or not there, with what is told of it beside."""
    with replacing_directory(output) as folder:
        model.save_pretrained(folder, dtype=dtype)
        if metadata:
            text = json.dumps(dict(metadata), ensure_ascii=False, indent=1) + "\n"
            (folder / BESIDE).write_text(text, encoding="utf-8")


def _metadata(source: Path) -> dict[str, str]:
    """What a model says of itself, without what holds for its file alone."""
    from modules.models.unpublished import CONFIGS_KEY
    from modules.safetensors_header import HASHES, read_header

    if source.is_dir():
        beside = source / BESIDE
        return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    if source.suffix != ".safetensors":
        return {}
    own = {"format", CONFIGS_KEY, *HASHES}
    return {key: text for key, text in read_header(source).metadata.items() if key not in own}
