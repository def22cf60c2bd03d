"""How a run trains, under the names that kohya-ss/sd-scripts gives its settings in files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.masking import mask_secrets
from modules.optimizer import ParameterGroup
from modules.plan import Plan
from modules.schedule import warmup_steps
from modules.sections import Config, OptimizerConfig

_COMPONENTS = ("unet", "text_encoder")


def run_settings(config: Config, plan: Plan, objective: Any, *, processes: int) -> dict[str, str]:
    """Return the `ss_*` values of what a config sets; "None" is what is not set, as there."""
    train, schedule = config.train, config.lr_scheduler
    rate = train.learning_rate
    warmup = warmup_steps(
        steps=schedule.warmup_steps, ratio=schedule.warmup_ratio, total=plan.max_train_steps
    )
    batch = train.batch_size * processes * train.gradient_accumulation_steps
    values = {
        "ss_sd_model_name": model_name(config.model.path),
        "ss_vae_name": model_name(config.model.vae) if config.model.vae else None,
        "ss_clip_skip": config.model.clip_skip,
        "ss_max_token_length": config.model.max_token_length,
        "ss_learning_rate": rate if not isinstance(rate, Mapping) else None,
        "ss_optimizer": _optimizer(config.optimizer),
        "ss_lr_scheduler": schedule.name,
        "ss_lr_warmup_steps": warmup,
        "ss_max_train_steps": plan.max_train_steps,
        "ss_num_epochs": math.ceil(plan.max_train_steps / plan.steps_per_epoch),
        "ss_num_batches_per_epoch": plan.batches,
        "ss_batch_size_per_device": train.batch_size,
        "ss_total_batch_size": batch,
        "ss_gradient_accumulation_steps": train.gradient_accumulation_steps,
        "ss_gradient_checkpointing": train.gradient_checkpointing,
        "ss_max_grad_norm": train.max_grad_norm,
        "ss_mixed_precision": train.mixed_precision,
        "ss_seed": train.seed,
        "ss_num_reg_images": len(plan.prior) if plan.prior is not None else 0,
        "ss_prior_loss_weight": config.prior.loss_weight if config.prior else None,
        "ss_training_comment": "sd-trainer",
    }
    return {key: str(value) for key, value in (values | _objective(objective)).items()}


def network_rates(
    groups: Sequence[ParameterGroup], networks: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return ss_unet_lr and ss_text_encoder_lr by network; "" is the base.

    Parts with rates of their own make a list. Networks of which neither is true have none.
    """
    found: dict[str, dict[str, str]] = {"": {}, **{name: {} for name in networks}}
    rates: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        owner, _, part = group.name.partition(".")
        if owner not in networks:
            owner, part = "", group.name
        component = next((c for c in _COMPONENTS if part.startswith(c)), None)
        if component is not None:
            known = rates.setdefault((owner, component), [])
            if group.learning_rate not in known:
                known.append(group.learning_rate)
    for owner, component in rates:
        for each in _COMPONENTS:  # one that is not trained has a rate of "None"
            found[owner].setdefault(f"ss_{each}_lr", str(None))
        own = rates[owner, component]
        found[owner][f"ss_{component}_lr"] = str(own[0] if len(own) == 1 else own)
    return found


def model_name(path: str) -> str:
    """Return what a base model is called: the last part of a path, or a hub id as it is."""
    return Path(path).name if Path(path).exists() else path


def _optimizer(section: OptimizerConfig) -> str:
    arguments = ",".join(f"{key}={value}" for key, value in mask_secrets(section.args).items())
    return section.module + (f"({arguments})" if arguments else "")


def _objective(objective: Any) -> dict[str, Any]:
    """What an objective says of itself; one of a person's own may say nothing."""
    names = {
        "ss_min_snr_gamma": "min_snr_gamma",
        "ss_noise_offset": "noise_offset",
        "ss_ip_noise_gamma": "input_perturbation",
        "ss_debiased_estimation": "debiased",
        "ss_loss_type": "loss",
    }
    found = {
        key: getattr(objective, name) for key, name in names.items() if hasattr(objective, name)
    }
    for key in ("ss_noise_offset", "ss_ip_noise_gamma"):
        if key in found:
            found[key] = found[key] or None  # 0 is off
    scheduler = getattr(objective, "scheduler", None)
    if scheduler is not None:
        found["ss_zero_terminal_snr"] = bool(scheduler.config.get("rescale_betas_zero_snr"))
    return found
