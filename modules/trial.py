"""A trial of a config: everything is looked at, nothing is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from modules.caption_lengths import describe_truncated
from modules.changed_settings import show_changed
from modules.config import Config
from modules.contact_sheet import draw_sheets
from modules.data_findings import write_findings
from modules.dataset_facts import prepared_parts
from modules.dataset_files import raise_faults
from modules.errors import explained
from modules.memory_table import memory_lines
from modules.models import load
from modules.models.prompts import set_prompts
from modules.plan import plan_run
from modules.preparation import is_prepared
from modules.prepared_dataset import PreparedDataset
from modules.run_folder import next_run_folder
from modules.run_parts import load_parts
from modules.sources import make_batch_sampler
from modules.stale_files import check_freshness
from modules.text_cache import TEXT_PIECES
from modules.validation_parts import find_held_out

logger = logging.getLogger(__name__)

_SHOWN = 2000  # images that are read without a progress bar


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial writes, if anything."""

    sheet: Path | None = None
    """A picture of the images as they are trained on, with their captions."""
    report: Path | None = None
    """A text that lists all that the plan's lines on data name a few of."""

    @classmethod
    def writing(cls, *, sheet: str | None, report: str | None) -> Self:
        """A trial that writes files at these paths."""
        return cls(sheet=Path(sheet) if sheet else None, report=Path(report) if report else None)


def try_out(config: Config, trial: Trial) -> None:
    """Show the plan of a run, and read all that it would read.

    Raises:
        ConfigError: an argument, the dataset or the model does not fit.
    """
    if config.prepare and not is_prepared(config):
        listed = "".join(f"\n  {step.module}" for step in config.prepare)
        logger.info("the dataset is not there yet; a run begins by preparing it:%s", listed)
        return
    parts = load_parts(config, weights=False)
    for name in ("dataset", "prior", "validation"):
        if (dataset := getattr(parts, name)) is not None:
            explained(name, partial(read_all, dataset))
            explained(name, partial(_check_text, config, dataset))
    held_out = find_held_out(config, parts)
    batch_sampler = make_batch_sampler(config, held_out.buckets, rank=0, world_size=1)
    plan = plan_run(config, parts, batch_sampler, held_out)
    directory = next_run_folder(Path(config.save.directory), str(config.save.name))
    show_changed(config)
    plan.show(directory)
    if trial.report is not None:
        write_findings(trial.report, plan.findings)
    if cut := describe_truncated(parts.model, parts.dataset):
        logger.warning("%s", cut)
    if trial.sheet is not None:
        draw = partial(draw_sheets, parts.dataset, trial.sheet, held_out=held_out)
        vae = config.model.vae or config.model.path
        for path in explained("contact sheet", partial(draw, model=parts.model, vae=vae)):
            logger.info("contact sheet: %s", path)
    for line in memory_lines(config, parts, partial(load_parts, weights=False)):
        logger.info("memory     %s", line)


def read_all(dataset: Any) -> None:
    """Read every image of prepared datasets with all that lies beside it.

    Raises:
        ValueError: lists what can't be read, and what was made of images that are others now.
    """
    for _, part in prepared_parts(dataset):
        check_freshness(part, most=len(part))
        raise_faults(part.store, [*_unreadable(part)])


def _check_text(config: Config, dataset: Any) -> None:
    """Check cached text against the text encoders, whose weights are loaded for it."""
    cached = [part for _, part in prepared_parts(dataset) if part.text is not None]
    if not cached:
        return
    section = config.model
    model = load(section.path, weights=TEXT_PIECES, prediction_type=section.prediction_type)
    length, skip = section.max_token_length, section.clip_skip
    set_prompts(model, max_token_length=length, clip_skip=skip)
    for encoder in model.text_encoders:
        encoder.module.requires_grad_(False)  # what is trained, `load_parts` has checked
    for part in cached:
        part.check_text_cache(model, {})


def _unreadable(part: PreparedDataset) -> Iterator[str]:
    numbers: Any = range(len(part))
    if len(part) > _SHOWN:
        from tqdm import tqdm

        numbers = tqdm(numbers, desc="reading the dataset", unit=" images", dynamic_ncols=True)
    for number in numbers:
        try:
            sample = part.whole_sample(number)
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        if sample.latents is not None and not sample.latents.isfinite().all():
            yield f"{sample.name}: its latents are not finite; encode the image again"
