"""The two kinds of runs, of a denoiser and of a VAE: what differs between them, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from modules.component import resolve
from modules.models import load
from modules.models.base import DiffusionModel
from modules.models.prompts import set_prompts
from modules.parts import build_objective
from modules.protocols import Objective, VaeObjective
from modules.sections import Config, ModelConfig, SampleConfig
from modules.trainer import Trainer
from modules.vae_run import build_vae_objective, load_autoencoder, vae_faults, vae_patterns
from modules.vae_trainer import VaeTrainer
from modules.validation_losses import DenoisingLosses, ReconstructionLosses


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """What is loaded, what its objective can do, whose loss is trained, what shows the progress."""

    objective: type  # the protocol
    load: Callable[..., Any]  # a model, of the section and with `weights` or not
    build_objective: Callable[[Config, Any], Any]
    trainer: type[Trainer]
    losses: Callable[..., Any]  # how held-out images are measured
    sampler: str  # its class, where the config doesn't name one
    find_faults: Callable[[Config], list[str]]


def kind_of(config: Config) -> RunKind:
    """The kind of a run, by its objective: one that reconstructs trains the VAE."""
    module = config.objective.module
    try:
        trains_vae = module is not None and hasattr(resolve(module), "reconstruction_loss")
    except ValueError:  # said with the arguments
        trains_vae = False
    return RECONSTRUCTION if trains_vae else DENOISING


def with_sampler(config: Config) -> Config:
    """The config with its kind's sampler in place of the default one."""
    if config.sample is None or config.sample.module != SampleConfig.module:
        return config
    return replace(config, sample=replace(config.sample, module=kind_of(config).sampler))


def load_model(section: ModelConfig, *, weights: bool) -> DiffusionModel:
    """Load a whole base model, if need be with another VAE."""
    told = section.prediction_type
    model = load(section.path, vae=section.vae, weights=weights, prediction_type=told)
    length, skip = section.max_token_length, section.clip_skip
    set_prompts(model, max_token_length=length, clip_skip=skip)
    return model


def denoising_faults(config: Config) -> list[str]:
    """What a run that trains no VAE can't do."""
    return [
        f"model.trainable: {pattern!r} is trained on reconstructions; write `objective: {{module: "
        "modules.reconstruction.Reconstruction}`, in a run of its own"
        for pattern in vae_patterns(config)
    ]


DENOISING = RunKind(
    objective=Objective,
    load=load_model,
    build_objective=build_objective,
    trainer=Trainer,
    losses=DenoisingLosses,
    sampler=SampleConfig.module,
    find_faults=denoising_faults,
)
RECONSTRUCTION = RunKind(
    objective=VaeObjective,
    load=load_autoencoder,
    build_objective=build_vae_objective,
    trainer=VaeTrainer,
    losses=ReconstructionLosses,
    sampler="modules.reconstruction_sampler.ReconstructionSampler",
    find_faults=vae_faults,
)
