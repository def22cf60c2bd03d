"""What a model predicts, noise or velocity, found by measuring both losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from modules.batch import Batch, DenoiserInputs, Sample, collate
from modules.guides import spread, whole_sample
from modules.models.base import DiffusionModel
from modules.objectives import make_scheduler
from modules.protocols import Network

logger = logging.getLogger(__name__)

_FIRST_SEED = 0x5EED0000  # none that a dataset may have drawn its own noise with
_LEAST_RATIO = 1.5  # of the larger loss to the smaller; below it neither is believed


def measure_losses(model: DiffusionModel, batch: Batch, *, seed: int = 0) -> dict[str, float]:
    """The mean squared error of the model's prediction as noise and as velocity."""
    return {name: loss for name, (loss, _) in measure(model, batch, seed=seed).items()}


@torch.no_grad()
def measure(
    model: DiffusionModel, batch: Batch, *, seed: int = 0, networks: Iterable[Network] = ()
) -> dict[str, tuple[float, float]]:
    """By type, the mean squared error of the prediction, and that of predicting nothing at all.

    Timesteps are drawn from the middle of the schedule: near its beginning noise and velocity are
    one, near its end even a good model's velocity is wrong. A trained model's own loss is a
    fraction of the other there. The state of the random numbers stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_FIRST_SEED + seed)
        clean = model.encode_images(batch)
        conditions = model.encode_prompts(batch)
        noise = torch.randn(clean.shape).to(clean)
        places = 0.4 + 0.4 * torch.rand(len(clean))
    alphas_cumprod = model.scheduler.alphas_cumprod.to(clean)
    timesteps = (places * len(alphas_cumprod)).long().to(clean.device)
    alpha_bar = alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    inputs = DenoiserInputs(sample=signal * clean + sigma * noise, timestep=timesteps, **conditions)
    for network in networks:
        inputs = network.condition(inputs, batch)
    prediction = model.denoise(inputs).float()
    targets = {"epsilon": noise, "v_prediction": signal * noise - sigma * clean}
    return {
        name: ((prediction - target).square().mean().item(), target.float().square().mean().item())
        for name, target in targets.items()
    }


def settle_prediction(model: DiffusionModel, batches: Callable[[], Iterable[Batch]]) -> None:
    """Let a model whose files don't say what it predicts take what it does better on `batches`.

    Raises:
        ValueError: it does neither clearly better; gives the losses.
    """
    if model.prediction_source is not None:
        return
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    pieces = [*model.components().values(), *([] if model.vae is None else [model.vae])]
    for piece in pieces:
        piece.to(device)
    measured = [measure_losses(model, b.to(device), seed=n) for n, b in enumerate(batches())]
    for piece in pieces:
        piece.to("cpu")
    means = {k: sum(losses[k] for losses in measured) / len(measured) for k in measured[0]}
    better, worse = sorted(means, key=means.__getitem__)
    told = f"loss {means[better]:.3f} as {better}, {means[worse]:.3f} as {worse}"
    if not means[worse] > _LEAST_RATIO * means[better]:
        raise ValueError(
            f"{model.path}: nothing in the file says what the model predicts, and measuring does "
            f"not tell ({told}); say it by model.prediction_type"
        )
    model.use_scheduler(make_scheduler(model.scheduler, better, None))
    model.prediction_source = f"measuring: {told}"
    logger.info("%s: predicts %s by %s", model.path, better, model.prediction_source)


def sample_batches(dataset: Any, *, count: int = 8, most: int = 1) -> list[Batch]:
    """Some images of a dataset, spread over it, in batches of at most so many of one size."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for number in spread(count, len(dataset)):
        sample = whole_sample(dataset, number)
        tensors = (sample.latents, sample.pixel_values)
        groups.setdefault(tuple(next(t.shape for t in tensors if t is not None)), []).append(sample)
    return [
        batch
        for samples in groups.values()
        for start in range(0, len(samples), most)
        for batch in _collate(samples[start : start + most])
    ]


def _collate(samples: list[Sample]) -> list[Batch]:
    try:
        return [collate(samples)]
    except ValueError:  # they hold different things
        return [collate([sample]) for sample in samples]


def grey_batches(model: DiffusionModel, caption: str, *, count: int = 4) -> list[Batch]:
    """Batches where no dataset is there: grey pictures tell what noise is, too."""
    side = model.denoiser.config.sample_size
    latents = torch.zeros(count, model.latent_channels, side, side)
    size = torch.tensor([[side * model.vae_scale_factor] * 2] * count)
    return [Batch(captions=[caption] * count, latents=latents, original_size=size)]
