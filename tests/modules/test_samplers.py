"""Validation images: reproducible, through the networks, as diffusers draws them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from modules import models
from modules.batch import Sample
from modules.drawing import draw_images, starting_noise
from modules.samplers import GridSampler, read_prompts
from networks.lora import LoRA

SIZE = (32, 48)


def draw(model, networks=(), **options) -> list[np.ndarray]:
    given = {"prompts": ["a red cat"], "seeds": [5], "size": SIZE, "num_inference_steps": 3}
    images = draw_images(model, networks, **{**given, **options})
    return [np.asarray(image, dtype=np.int16) for image in images]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_images_are_those_of_diffusers_pipeline(tmp_path, prediction_type, guidance_scale):
    directory = tiny.save_sd(tmp_path / "model", prediction_type=prediction_type)
    model = models.load(str(directory))
    ours = draw(model, negative_prompt="a dog", guidance_scale=guidance_scale)[0]
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red cat",
        negative_prompt="a dog",
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        latents=starting_noise(model, [5], SIZE),
        width=SIZE[0],
        height=SIZE[1],
    ).images[0]
    assert theirs.size == SIZE
    assert np.abs(ours - np.asarray(theirs, dtype=np.int16)).max() <= 1


def test_an_image_depends_on_its_own_seed_only():
    model = tiny.make_sd()
    both = draw(model, prompts=["a red cat", "a blue dog"], seeds=[5, 6])
    alone = draw(model, prompts=["a blue dog"], seeds=[6])
    assert np.abs(both[1] - alone[0]).max() <= 1
    assert not np.array_equal(both[0], draw(model, seeds=[7])[0])


def test_random_states_and_modes_are_untouched():
    model = tiny.make_sd()
    model.denoiser.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.denoiser.training
    assert not model.text_encoders[0].module.training


def test_networks_take_part():
    model = tiny.make_sd()
    plain = draw(model)[0]
    network = LoRA(rank=4)
    network.attach(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    assert not np.array_equal(draw(model, [network])[0], plain)


class Run:
    """The part of a run that a sampler needs."""

    def __init__(self, directory, step):
        self.directory, self.step, self.steps_per_epoch = directory, step, 2
        self.model, self.networks = tiny.make_sd(), {}
        self.shown: list[str] = []

    def sampled_weights(self):
        return contextlib.nullcontext()

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    def log_images(self, key, images, captions):
        self.shown += captions


def prepare(sampler: GridSampler, model) -> None:
    dataset = [Sample(name="a", caption="a red cat")]
    sampler.prepare(model=model, networks={}, dataset=dataset)


def test_grids_are_drawn_when_due_and_compared_at_the_end(tmp_path):
    sampler = GridSampler(
        prompts=["a red cat", "a blue dog", "a mat"],
        width=32,
        height=48,
        num_inference_steps=2,
        every_epochs=2,
        batch_size=2,
    )
    run = Run(tmp_path, 0)
    prepare(sampler, run.model)
    for step, last in ((0, False), (1, False), (2, False), (4, False), (5, True)):
        run.step = step
        sampler.sample_if_due(run, last=last)
    drawn = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert drawn == ["step00000000.png", "step00000004.png", "step00000005.png"]
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.width > 4 * 192  # two cells in a row, each with before and after
    assert run.shown == ["a red cat", "a blue dog", "a mat"] * 3


def test_without_a_start_there_is_nothing_to_compare(tmp_path):
    sampler = GridSampler(prompts=["a"], width=32, height=32, num_inference_steps=1, at_start=False)
    run = Run(tmp_path, 0)
    prepare(sampler, run.model)
    sampler.sample_if_due(run, last=False)
    assert not (tmp_path / "samples").exists()
    run.step = 3
    sampler.sample_if_due(run, last=True)
    assert not (tmp_path / "before_after.png").exists()


def test_prompts_are_read_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red cat\n\n# not this\n  a blue dog \n", encoding="utf-8")
    assert read_prompts(str(path)) == ["a red cat", "a blue dog"]
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no prompt in it"):
        GridSampler(prompts=str(path))


def test_a_size_that_the_model_cannot_draw_is_refused():
    with pytest.raises(ValueError, match=r"height: 36 is no multiple of 8"):
        prepare(GridSampler(prompts=["a"], width=32, height=36), tiny.make_sd())
