"""What a model predicts, by measuring: on the trained tiny model, and on it turned to epsilon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from modules import models
from modules.batch import Batch
from modules.prediction_probe import (
    grey_batches,
    measure_losses,
    sample_batches,
    settle_prediction,
)
from tools.tiny_pictures import draw_varied_batch

TINY_SD = Path(__file__).parents[2] / "assets" / "tiny-sd"


@pytest.fixture(scope="module")
def model():
    return models.load(str(TINY_SD))


@pytest.fixture(scope="module")
def pictures() -> Batch:
    pixel_values = draw_varied_batch(np.random.default_rng(0), 4).contiguous()
    return Batch(captions=[""] * 4, pixel_values=pixel_values)


def as_epsilon(model):
    """The same model, turned into one that predicts noise: eps = sqrt(a) v + sqrt(1 - a) x_t."""
    alphas_cumprod = model.scheduler.alphas_cumprod

    def denoise(inputs):
        alpha_bar = alphas_cumprod[inputs.timestep].reshape(-1, 1, 1, 1)
        velocity = type(model).denoise(model, inputs)
        return alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * inputs.sample

    turned = models.load(str(TINY_SD))
    turned.denoise = denoise
    return turned


@pytest.mark.parametrize("seed", range(5))
def test_a_trained_models_own_loss_is_a_fraction_of_the_other(model, pictures, seed):
    losses = measure_losses(model, pictures, seed=seed)
    assert losses["v_prediction"] < losses["epsilon"] / 4
    losses = measure_losses(as_epsilon(model), pictures, seed=seed)
    assert losses["epsilon"] < losses["v_prediction"] / 4


def test_measuring_changes_no_random_numbers(model, pictures):
    state = torch.get_rng_state()
    first = measure_losses(model, pictures)
    assert torch.equal(torch.get_rng_state(), state)
    assert measure_losses(model, pictures) == first


@pytest.mark.parametrize("known", ["v_prediction", "epsilon"])
def test_an_unsettled_model_takes_what_it_does_better(pictures, known):
    model = models.load(str(TINY_SD))
    model = model if known == "v_prediction" else as_epsilon(model)
    other = "epsilon" if known == "v_prediction" else "v_prediction"
    config = model.scheduler.config
    model.scheduler = type(model.scheduler).from_config(config, prediction_type=other)
    model.prediction_source = None
    settle_prediction(model, lambda: [pictures])
    assert model.scheduler.config.prediction_type == known
    assert model.scheduler_config()["prediction_type"] == known
    assert model.prediction_source.startswith("measuring: loss 0.")
    assert not model.denoiser.training


def test_a_settled_model_is_not_measured(model):
    settle_prediction(model, lambda: pytest.fail("measured"))
    assert model.prediction_source == "its scheduler"


def test_a_model_that_does_neither_is_an_error(model_directory):
    model = models.load(str(model_directory))
    model.prediction_source = None
    latents = torch.randn(4, 4, 8, 8) / model.vae.config.scaling_factor
    batch = Batch(captions=["a cat"] * 4, latents=latents)
    with pytest.raises(ValueError, match=r"measuring does not tell \(loss .* model.prediction_ty"):
        settle_prediction(model, lambda: [batch])


def test_grey_pictures_tell_it_too(model):
    for seed, batch in enumerate(grey_batches(model, "a red circle on a blue background") * 3):
        losses = measure_losses(model, batch, seed=seed)
        assert losses["v_prediction"] < losses["epsilon"] / 1.5


def test_samples_are_spread_over_the_dataset(tmp_path):
    from modules.dataset import LatentDataset

    data = tiny.save_dataset(tmp_path / "data", {(32, 32): 5, (48, 32): 3})
    batches = sample_batches(LatentDataset(path=str(data)))
    assert [len(batch.names) for batch in batches] == [1] * 8
    batches = sample_batches(LatentDataset(path=str(data)), most=4)
    assert [len(batch.names) for batch in batches] == [4, 1, 3]
    batches = sample_batches(LatentDataset(path=str(data)), count=4, most=8)
    assert [batch.names for batch in batches] == [
        ["image000", "image002", "image004"],
        ["image006"],
    ]
    assert {batch.latents.shape[-1] for batch in batches} == {8, 12}
    data = tiny.save_dataset(tmp_path / "one", {(32, 32): 1})
    assert len(sample_batches(LatentDataset(path=str(data)))) == 1
