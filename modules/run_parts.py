"""What a run works on: datasets, model, networks and the rest, loaded as the config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from modules.block_offload import choose_blocks
from modules.checkpointing import choose_checkpoints
from modules.errors import explained
from modules.latent_origins import check_latent_origins
from modules.optimizer import ParameterGroup
from modules.parts import (
    build_dataset,
    build_network,
    build_sampler,
    parameter_groups,
    select_trained,
)
from modules.prediction_probe import sample_batches, settle_prediction
from modules.protocols import Network
from modules.run_kinds import kind_of
from modules.sections import Config
from modules.text_stop import check_text_stop, text_parameters


@dataclass(frozen=True)
class RunParts:
    """What a run works on, loaded and frozen as the config says."""

    dataset: Any
    prior: Any | None
    validation: Any | None  # a dataset of its own, of images that are not trained on
    model: Any  # a DiffusionModel, or in a run that trains the VAE that alone
    trained_base: Mapping[str, torch.nn.Parameter]
    networks: Mapping[str, Network]
    groups: list[ParameterGroup]
    objective: Any
    sampler: Any

    @property
    def datasets(self) -> list[Any]:
        """All that images are read from."""
        return [d for d in (self.dataset, self.prior, self.validation) if d is not None]


def load_parts(config: Config, *, weights: bool) -> RunParts:
    """Data first, then the model, then what is attached to it."""
    torch.manual_seed(config.train.seed)
    datasets: dict[str, Any] = {}
    own = config.validation if config.validation and config.validation.split is None else None
    sections = (("dataset", config.dataset), ("prior", config.prior), ("validation", own))
    for name, part in sections:
        if part is not None:
            action = partial(build_dataset, part, seed=config.train.seed)
            datasets[name] = explained(name, action)
    kind = kind_of(config)
    model = explained("model", partial(kind.load, config.model, weights=weights))
    for name, dataset in datasets.items():
        explained(name, partial(model.check_dataset, dataset))
        if hasattr(dataset, "check_latent_shapes"):
            sizes = (model.vae_scale_factor, model.latent_channels)
            check = dataset.check_latent_shapes
            if not weights:  # a trial, which may take its time
                check = getattr(dataset, "check_every_shape", check)
            explained(name, partial(check, *sizes))
        vae = config.model.vae or config.model.path
        explained(name, partial(check_latent_origins, dataset, model, vae))
    if weights:
        batches = partial(sample_batches, datasets["dataset"])
        explained("model", partial(settle_prediction, model, batches))
    if config.model.offload_blocks:
        check = partial(choose_blocks, model.denoiser, config.model.offload_blocks)
        explained("model.offload_blocks", check)
    trained_base = explained("model.trainable", lambda: select_trained(config, model))
    if trained_base and config.save.format == "single_file":
        explained("save.format", model.check_single_file)
    networks = {}
    for name, network in config.networks.items():
        action = partial(build_network, network, datasets, model)
        networks[name] = explained(f"networks.{name}", action)
    for name, dataset in datasets.items():
        if hasattr(dataset, "check_text_cache"):
            explained(name, partial(dataset.check_text_cache, model, networks))
    if chosen := config.train.gradient_checkpointing:
        choose = partial(choose_checkpoints, model, networks, chosen)
        explained("train.gradient_checkpointing", choose)
    objective = explained("objective", lambda: kind.build_objective(config, model))
    sampler = explained("sample", lambda: build_sampler(config))  # of the objective's schedule
    if hasattr(sampler, "prepare"):
        dataset = datasets["dataset"]
        action = partial(sampler.prepare, model=model, networks=networks, dataset=dataset)
        explained("sample", action)
    groups = explained("", lambda: parameter_groups(config, model, trained_base, networks))
    trained = [parameter for group in groups for parameter in group.parameters]
    text = text_parameters(trained_base, networks.values())
    after = config.train.stop_text_encoders_after
    explained("train", lambda: check_text_stop(after, trained, text))
    return RunParts(
        dataset=datasets["dataset"],
        prior=datasets.get("prior"),
        validation=datasets.get("validation"),
        model=model,
        trained_base=trained_base,
        networks=networks,
        groups=groups,
        objective=objective,
        sampler=sampler,
    )
