"""Samplers: each draws what diffusers' pipeline draws with it, and says what it can't."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import tiny
import tiny_if
import torch
from diffusers import StableDiffusionPipeline

from modules import models
from modules.drawing import draw_images
from modules.sampler_names import SAMPLER_NAMES, SHOWN_NAMES, find_sampler
from modules.sampling_schedulers import SOLVERS, make_sampling_scheduler

SIZE = (32, 48)


def draw(model, sampler, seeds=(5,), **options) -> list[np.ndarray]:
    given = {"prompts": ["a red cat"] * len(seeds), "size": SIZE, "num_inference_steps": 4}
    images = draw_images(model, [], seeds=list(seeds), sampler=sampler, **{**given, **options})
    return [np.asarray(image, dtype=np.int16) for image in images]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_sd(tmp_path_factory.mktemp("models") / "model", prediction_type="v_prediction")


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_images_are_those_of_diffusers_pipeline(folder, sampler):
    ours = draw(models.load(str(folder)), sampler, negative_prompt="a dog", guidance_scale=4.0)[0]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    made = getattr(diffusers, SOLVERS[sampler].class_name)
    pipeline.scheduler = made.from_config(pipeline.scheduler.config, **SOLVERS[sampler].options)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red cat",
        negative_prompt="a dog",
        guidance_scale=4.0,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(5),
        width=SIZE[0],
        height=SIZE[1],
    ).images[0]
    assert np.abs(ours - np.asarray(theirs, dtype=np.int16)).max() <= 1


def test_samplers_draw_different_images(folder):
    model = models.load(str(folder))
    drawn = [draw(model, sampler)[0] for sampler in SAMPLER_NAMES]
    for number, image in enumerate(drawn):
        assert all(np.abs(image - other).max() > 1 for other in drawn[:number]), number


@pytest.mark.parametrize("sampler", ["ddpm", "euler_a", "dpm_2_a", "dpmsolver++_sde"])
def test_noise_of_the_steps_is_each_images_own(folder, sampler):
    model = models.load(str(folder))
    state = torch.get_rng_state()
    both = draw(model, sampler, seeds=(5, 6))
    assert np.abs(both[1] - draw(model, sampler, seeds=(6,))[0]).max() <= 1
    assert torch.equal(torch.get_rng_state(), state)


def able(scheduler) -> list[str]:
    found = []
    for sampler in SAMPLER_NAMES:
        try:
            make_sampling_scheduler(scheduler, sampler)
        except ValueError:
            continue
        found.append(sampler)
    return found


def test_a_schedule_that_ends_in_noise_is_sampled_from_there():
    model = tiny.make_sd(prediction_type="v_prediction")
    made = type(model.scheduler).from_config
    model.scheduler = made(model.scheduler.config, rescale_betas_zero_snr=True)
    samplers = able(model.scheduler)
    assert {"ddim", "ddpm", "euler", "euler_a", "dpmsolver++", "unipc"} <= set(samplers)
    for sampler in samplers:
        scheduler = make_sampling_scheduler(model.scheduler, sampler)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps[0] == 999, sampler
        assert draw(model, sampler)[0].std() > 0
    message = r"sampler: heun can't draw from a schedule that ends in noise alone.* one of ddim, "
    with pytest.raises(ValueError, match=message):
        draw(model, "heun")


def test_images_that_are_clipped_are_drawn_by_samplers_that_clip():
    model = tiny_if.make_if()
    samplers = able(model.scheduler)
    assert {"ddim", "ddpm", "dpmsolver++", "dpmsolver++_sde", "unipc"} <= set(samplers)
    for sampler in samplers:
        (image,) = draw(model, sampler, size=(16, 16), guidance_scale=4.0)
        assert image.std() > 0, sampler
    with pytest.raises(ValueError, match=r"euler can't keep images within their range"):
        draw(model, "euler", size=(16, 16))


def test_names_of_other_programs_are_known():
    assert find_sampler("k_euler_a") == "euler_a"
    assert find_sampler("DPM++ 2M Karras") == "dpmsolver++_karras"
    assert find_sampler(" Euler A ") == "euler_a"
    assert find_sampler("lms") is None
    assert set(SHOWN_NAMES) == set(SOLVERS) == set(SAMPLER_NAMES)
    assert len(set(SHOWN_NAMES.values())) == len(SHOWN_NAMES)
