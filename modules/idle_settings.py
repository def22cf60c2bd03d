"""Settings that have no effect beside the others: said at start, by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from modules.component import accepts
from modules.optimizer_class import has_own_rate
from modules.save_section import OF_THE_RUN
from modules.sections import Config, LrSchedulerConfig


def idle_settings(config: Config) -> list[str]:
    """One line for each value that differs from its default but changes nothing."""
    lines: list[str] = []
    save, schedule, train = config.save, config.lr_scheduler, config.train
    if save.keep_last is not None and not (save.every_epochs or save.every_steps):
        lines.append("save.keep_last has no effect without save.every_epochs or save.every_steps")
    if save.format != type(save).format and not config.model.trainable:
        lines.append("save.format has no effect without model.trainable: it is that of the base")
    if schedule.num_cycles != LrSchedulerConfig.num_cycles and (
        schedule.name != "cosine_with_restarts"
    ):
        lines.append(
            f"lr_scheduler.num_cycles has no effect with {schedule.name}; "
            "it is for cosine_with_restarts"
        )
    if schedule.power != LrSchedulerConfig.power and schedule.name != "polynomial":
        lines.append(f"lr_scheduler.power has no effect with {schedule.name}; it is for polynomial")
    if schedule.name == "constant_with_warmup" and not (
        schedule.warmup_steps or schedule.warmup_ratio
    ):
        lines.append("lr_scheduler.name: constant_with_warmup has no warm-up; give warmup_steps")
    given_everywhere = config.networks and all(
        network.learning_rate is not None for network in config.networks.values() if network.train
    )
    changed = train.learning_rate != type(train).learning_rate
    if changed and given_everywhere and not config.model.trainable:
        lines.append("train.learning_rate has no effect: every network has its own")
    if has_own_rate(config.optimizer.module, config.optimizer.args):
        lines.append(
            f"train.learning_rate has no effect: {config.optimizer.module} follows one of its own; "
            "write optimizer.args.relative_step: false to set it"
        )
    if 0 < config.model.offload_blocks <= 2:
        lines.append("model.offload_blocks has no effect below 3: two are on the card at a time")
    for name, network in config.networks.items():
        if not network.train and network.resume is None:
            lines.append(f"networks.{name} stays as it starts, with train: false and no resume")
        if network.learning_rate is not None and not network.train:
            lines.append(f"networks.{name}.learning_rate has no effect with train: false")
    if config.sample is not None and config.sample.tome and not train.tome_ratio:
        lines.append("sample.tome has no effect without train.tome_ratio")
    if config.sample is not None and config.sample.as_saved and save.dtype == "fp32":
        lines.append("sample.as_saved has no effect with save.dtype: fp32, which loses nothing")
    looked_at = config.sample is not None or config.validation is not None
    if config.ema is not None and not looked_at and not config.ema.sample:
        lines.append("ema.sample has no effect without a sample or validation section")
    held_out = config.validation
    if held_out and held_out.split is not None and held_out.module != type(held_out).module:
        lines.append("validation.module has no effect with split, which is of the dataset")
    lines += _not_taken("save", save, needed=OF_THE_RUN)
    lines += _not_taken("sample", config.sample, needed=())
    return lines


def _not_taken(where: str, section: Any, *, needed: tuple[str, ...]) -> Iterator[str]:
    """Name the settings that a saver or sampler of the person's own does not ask for."""
    for field in fields(section) if section is not None else ():
        if field.name in ("module", "args", *needed):
            continue
        made = field.default_factory
        default = field.default if made is MISSING else made()
        if getattr(section, field.name) != default and not accepts(section.module, field.name):
            yield f"{where}.{field.name} has no effect: {section.module} takes no such argument"
