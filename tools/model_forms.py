"""Whole base models as diffusers' directory and as one file."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from modules.files import replacing, share_files
from tools.command import check_new
from tools.containers import stored_dtype

logger = logging.getLogger(__name__)


def convert_model(source: Path, output: Path, *, dtype: str | None = None) -> str:
    """Write a base model's directory as one file, or its file as a directory; returns its family.

    Raises:
        ValueError: it is no base model, has no form in one file, or `output` exists.
    """
    from modules.models import load
    from modules.models.layouts import UNET
    from modules.savers import DTYPES

    check_new(output)
    start, place = ("", source / "unet") if source.is_dir() else (UNET, source)
    model = load(str(source))
    target = DTYPES[dtype or stored_dtype(place, start=start)]
    if model.prediction_source is None:
        logger.warning(
            "%s: doesn't say what it predicts; written is %s, mend scheduler_config.json if it "
            "is another",
            *(source, model.scheduler.config.prediction_type),
        )
    if source.is_dir():
        model.check_single_file()
        with replacing(output) as temporary:
            title = {"modelspec.title": output.stem}
            model.save_single_file(temporary, dtype=target, metadata=title)
        return type(model).__name__
    folder = output.with_name(f".{output.name}.tmp")
    try:
        folder.mkdir(parents=True)
        model.save_pretrained(folder, dtype=target)
        share_files(folder)
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return type(model).__name__
