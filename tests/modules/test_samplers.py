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
from modules.samplers import GridSampler, origin
from networks.controlnet import ControlNet
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
        self.model, self.networks, self.trained_base = tiny.make_sd(), {}, {}
        self.model.path, self.name = "some/tiny-sd", "run"
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
    drawn = sorted(path.name for path in (tmp_path / "samples").glob("*.png"))
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


def test_a_size_that_the_model_cannot_draw_is_refused():
    with pytest.raises(ValueError, match=r"height: 36 is no multiple of 8"):
        prepare(GridSampler(prompts=["a"], width=32, height=36), tiny.make_sd())


PHOTO = {"negative_prompt": "a photo", "num_inference_steps": 3}
SETTINGS = {"width": 32, "height": 48, "num_inference_steps": 2}


def sample(directory, prompts, *, networks=None, **options) -> GridSampler:
    """Draw the prompts as at the start of a run."""
    run = Run(directory, 0)
    run.networks = networks or {}
    for network in run.networks.values():
        network.attach(run.model)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
    sampler = GridSampler(prompts=prompts, **{**SETTINGS, **options})
    dataset = [Sample(name="a", caption="a red cat")]
    sampler.prepare(model=run.model, networks=run.networks, dataset=dataset)
    sampler.sample_if_due(run, last=False)
    return sampler


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int16)


def test_each_prompt_is_drawn_with_its_own_settings(tmp_path):
    prompts = [
        "a red cat --n a dog --d 7",
        "a mat --w 64 --h 32 --ss euler_a --s 3",
        {"prompt": "a blue dog", "guidance_scale": 1, "seed": 4},
        "a cat",
        "a dog on a mat --h 32 --w 64 --steps 3 --ss Euler a",
    ]
    sample(tmp_path, prompts, negative_prompt="a photo", seed=10)
    model = tiny.make_sd()
    wide = {"size": (64, 32), "sampler": "euler_a", **PHOTO}
    expected = [
        draw(model, seeds=[7], negative_prompt="a dog", num_inference_steps=2),
        draw(model, prompts=["a mat"], seeds=[11], **wide),
        draw(model, prompts=["a blue dog"], seeds=[4], guidance_scale=1.0, num_inference_steps=2),
        draw(model, prompts=["a cat"], seeds=[13], **{**PHOTO, "num_inference_steps": 2}),
        draw(
            model, prompts=["a dog on a mat"], seeds=[14], sampler="euler_a", size=(64, 32), **PHOTO
        ),
    ]
    for number, (image,) in enumerate(expected):
        own = read(tmp_path / "samples" / "step00000000" / f"{number:02d}.png")
        assert own.shape == image.shape
        assert np.abs(own - image).max() <= 1, number


def test_files_and_the_sheet_tell_how_they_were_drawn(tmp_path):
    sample(tmp_path, ["a red cat --n a dog --d 7 --w 64", "猫 --ss unipc"])
    texts = []
    for number in range(2):
        with Image.open(tmp_path / "samples" / "step00000000" / f"{number:02d}.png") as image:
            texts.append(image.text["parameters"])
    assert texts[0] == (
        "a red cat\nNegative prompt: a dog\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 7, "
        "Size: 64x48, Model: tiny-sd, Run: run, Training step: 0"
    )
    assert texts[1].startswith("猫\nSteps: 2, Sampler: UniPC, CFG scale: 7.5, Seed: 1, Size: 32x48")
    with Image.open(tmp_path / "samples" / "step00000000.png") as sheet:
        assert sheet.text["parameters"] == "\n\n".join(texts)


def test_the_model_of_a_picture_is_the_run_where_the_base_is_trained(tmp_path):
    run = Run(tmp_path, 3)
    assert origin(run) == {"Model": "tiny-sd", "Run": "run", "Training step": 3}
    run.model.path = "models/v1.5.safetensors"
    run.model.clip_skip = 2
    assert origin(run)["Model"] == "v1.5"
    assert origin(run)["Clip skip"] == 2
    run.trained_base = {"unet.conv_in.weight": None}
    assert origin(run)["Model"] == "run"


def test_networks_are_applied_as_strongly_as_a_prompt_says(tmp_path):
    network = LoRA(rank=4, multiplier=0.5)
    sample(tmp_path, ["a red cat --d 5", "a red cat --d 5 --m 0"], networks={"lora": network})
    assert network.multiplier == 0.5
    with_it, without = (
        read(tmp_path / "samples" / "step00000000" / f"{number:02d}.png") for number in range(2)
    )
    plain = draw(tiny.make_sd(), num_inference_steps=2)[0]
    assert np.abs(without - plain).max() <= 1
    assert np.abs(with_it - plain).max() > 1
    with pytest.raises(ValueError, match=r"prompts.0: multiplier: there is no network"):
        sample(tmp_path, ["a red cat --m 0.5"])


def test_a_control_image_is_of_the_prompts_own_size(tmp_path):
    for name, colour in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    prompts = [f"a cat --cn {tmp_path / 'red.png'} --w 64", "a dog"]
    network = ControlNet()
    sampler = sample(
        tmp_path,
        prompts,
        networks={"net": network},
        extras={"control": [str(tmp_path / "blue.png")]},
    )
    first, second = (guides["control"] for guides in sampler._guides)
    assert first.shape == (3, 48, 64)
    assert second.shape == (3, 48, 32)
    assert first.mean(dim=(1, 2)).tolist() == pytest.approx([1, 0, 0])
    assert second.mean(dim=(1, 2)).tolist() == pytest.approx([0, 0, 1])
    with pytest.raises(ValueError, match=r"prompts.0: control image: no network asks for one"):
        sample(tmp_path, prompts)


def test_all_that_the_model_cannot_draw_is_told_at_once(tmp_path):
    prompts = ["a cat --w 36", "a dog", "a mat --h 20"]
    with pytest.raises(ValueError, match="36 is no multiple") as raised:
        sample(tmp_path, prompts)
    first, second = str(raised.value).splitlines()
    assert first.startswith("prompts.0: width: 36")
    assert second.strip().startswith("prompts.2: height: 20")
    with pytest.raises(ValueError, match="height: 36") as raised:
        sample(tmp_path, ["a", "b"], height=36)
    assert len(str(raised.value).splitlines()) == 1
