"""A run that trains a VAE: what it loads, and what a config can't ask of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from modules.component import argument_faults, build
from modules.models.autoencoder import Autoencoder
from modules.models.base import DiffusionModel
from modules.models.patterns import matches
from modules.sections import Config, ModelConfig

logger = logging.getLogger(__name__)

_ENCODER = ("vae.encoder", "vae.quant_conv")
"""What makes latents of images; the rest of a VAE makes images of latents."""


def load_autoencoder(section: ModelConfig, *, weights: bool) -> Autoencoder:
    """Load `model.vae`, or the VAE of `model.path`, and nothing else."""
    for name in ("prediction_type", "max_token_length", "clip_skip"):
        if getattr(section, name) != getattr(ModelConfig, name):
            logger.warning("model.%s has no effect where the VAE is trained", name)
    if section.vae is None:
        return Autoencoder.from_pretrained(section.path, weights=weights)

    def config() -> dict[str, Any]:
        return dict(Autoencoder.from_pretrained(section.path, weights=False).vae.config)

    return Autoencoder.from_pretrained(section.vae, weights=weights, config=config)


def build_vae_objective(config: Config, model: DiffusionModel) -> Any:
    """The objective of the config; warns if the VAE's latents won't be those of before."""
    trained = model.parameters_matching(config.model.trainable)
    if any(matches(path, piece) for path in trained for piece in _ENCODER):
        logger.warning(
            "model.trainable: the encoder is trained, so that latents change: those cached with "
            "this VAE are no longer its own, and a UNet trained on them has to be trained again; "
            "[vae.decoder, vae.post_quant_conv] leaves the latents as they are"
        )
    elif "kl" in config.objective.args:
        logger.warning("objective.args.kl has no effect: the encoder is not trained")
    if "perceptual_weight" in config.objective.args and not config.objective.args.get("perceptual"):
        logger.warning("objective.args.perceptual_weight has no effect without perceptual")
    assert config.objective.module is not None, "a VAE run is told by its objective"
    return build(config.objective.module, config.objective.args)


def vae_patterns(config: Config) -> list[str]:
    """The patterns of `model.trainable` that name parts of a VAE."""
    return [p for p in config.model.trainable if p.partition(".")[0] == "vae"]


def vae_faults(config: Config) -> list[str]:
    """What a VAE run can't do of what a config asks."""
    return [*_strange_settings(config), *_perceptual_faults(config.objective.args)]


def _strange_settings(config: Config) -> Iterator[str]:
    objective, train = config.objective.module, config.train
    strange = [p for p in config.model.trainable if p not in vae_patterns(config)]
    if strange or not config.model.trainable:
        given = f"{strange[0]!r} is no part of a VAE" if strange else "is empty"
        yield (
            f"model.trainable: {given}; with {objective} write [vae.decoder, vae.post_quant_conv] "
            "or [vae], and train the rest of the model in a run of its own"
        )
    if config.networks:
        yield f"networks: {', '.join(config.networks)} can't be used while the VAE is trained"
    if config.prior is not None:
        yield "prior: there are no class images in a run that trains the VAE; take it out"
    if train.mixed_precision == "fp16":
        yield "train.mixed_precision: a VAE overflows in fp16; write bf16 or no"
    if train.tome_ratio is not None:
        yield "train.tome_ratio: a VAE has no tokens to merge; take it out"
    args = config.dataset.args
    several = (args, args.get("common"), *(args.get("datasets") or ()))
    if any(isinstance(each, Mapping) and each.get("text_cache") for each in several):
        yield "dataset.args.text_cache: a VAE is told no captions; take it out"


def _perceptual_faults(args: Mapping[str, Any]) -> list[str]:
    """Faults of a component among the objective's arguments."""
    section, where = args.get("perceptual"), "objective.args.perceptual"
    if not isinstance(section, Mapping):
        return []  # none, or said already
    if not isinstance(section.get("module"), str) or set(section) - {"module", "args"}:
        return [f"{where}: must be {{module: a dotted path, args: {{its arguments}}}}"]
    return argument_faults(where, section["module"], section.get("args") or {})
