"""Inpainting models of every family, against diffusers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import tiny_inpaint
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from torch.nn import functional

from modules import models
from modules.batch import Batch, DenoiserInputs, Sample
from modules.drawing import draw_images, starting_noise
from modules.guides import find_guides

KINDS = {
    "sd1": ("StableDiffusionInpaintPipeline", tiny_inpaint.make_sd, {}),
    "sd2": (
        "StableDiffusionInpaintPipeline",
        tiny_inpaint.make_sd,
        {"sd2": True, "prediction_type": "v_prediction"},
    ),
    "sdxl": ("StableDiffusionXLInpaintPipeline", tiny_inpaint.make_sdxl, {}),
}
SIZE = (32, 48)
CAPTIONS = ["a red cat", "a blue dog"]


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory) -> Path:
    """A random inpainting model as a diffusers directory."""
    _, make, options = KINDS[request.param]
    return tiny.save_sd(
        tmp_path_factory.mktemp(request.param) / request.param, make=make, **options
    )


@pytest.fixture
def pipeline(directory):
    pipeline = DiffusionPipeline.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pictures(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W) in 0..1, and masks (B, 3, H, W) of odd edges."""
    generator = torch.Generator().manual_seed(5)
    width, height = SIZE
    pictures = torch.rand(count, 3, height, width, generator=generator)
    masks = torch.zeros(count, 3, height, width)
    for number in range(count):
        masks[number, :, 7 : 30 + number, 3:21] = 1
    return pictures, masks


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_is_saved_as_it_was_loaded(directory, pipeline, tmp_path):
    model = models.load(str(directory))
    assert model.pipeline == KINDS[directory.name][0]
    assert type(pipeline) is getattr(diffusers, model.pipeline)
    assert model.latent_channels == 4
    model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert type(again) is type(pipeline)
    saved, own = again.unet.state_dict(), model.denoiser.state_dict()
    assert own["conv_in.weight"].shape[1] == 9
    assert all(torch.equal(saved[key], own[key]) for key in own)


@torch.no_grad()
def test_side_channels_are_those_of_the_pipeline(directory, pipeline):
    model = models.load(str(directory))
    pictures, masks = make_pictures()
    batch = Batch(captions=CAPTIONS, pixel_values=pictures * 2 - 1, extras={"inpaint": masks})
    ours = model.encode_prompts(batch)["side_channels"]
    mask = pipeline.mask_processor.preprocess(masks[:, :1], *SIZE[::-1])
    image = pipeline.image_processor.preprocess(pictures, *SIZE[::-1])
    masked = image * (mask < 0.5)
    prepare = pipeline.prepare_mask_latents
    theirs = prepare(mask, masked, 2, *SIZE[::-1], torch.float32, "cpu", None, False)
    assert ours.shape == (2, 5, 12, 8)
    torch.testing.assert_close(ours, torch.cat(theirs, dim=1), rtol=0, atol=1e-5)
    assert ours[:, :1].unique().tolist() == [0, 1]


@torch.no_grad()
def test_the_prediction_is_the_unets(directory, pipeline):
    model = models.load(str(directory))
    pictures, masks = make_pictures()
    batch = Batch(captions=CAPTIONS, pixel_values=pictures * 2 - 1, extras={"inpaint": masks})
    sample, timestep = torch.randn(2, 4, 12, 8), torch.tensor([10, 700])
    inputs = DenoiserInputs(sample=sample, timestep=timestep, **model.encode_prompts(batch))
    whole = torch.cat([sample, inputs.side_channels], dim=1)
    theirs = pipeline.unet(
        whole,
        timestep,
        encoder_hidden_states=inputs.encoder_hidden_states,
        added_cond_kwargs=dict(inputs.added_cond_kwargs),
    ).sample
    torch.testing.assert_close(model.denoise(inputs), theirs, rtol=0, atol=1e-5)
    other = model.denoise(DenoiserInputs(**{**vars(inputs), "side_channels": whole[:, :5] * 0}))
    assert (other - theirs).abs().max() > 1e-3  # the mask and the picture are heard


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_images_are_those_of_the_pipeline(directory, pipeline, guidance_scale):
    model = models.load(str(directory))
    pictures, masks = make_pictures(1)
    drawn = draw_images(
        model,
        [],
        prompts=["a red cat"],
        negative_prompt="a dog",
        seeds=[5],
        size=SIZE,
        extras={"picture": pictures, "inpaint": masks},
        num_inference_steps=3,
        guidance_scale=guidance_scale,
    )[0]
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        "a red cat",
        negative_prompt="a dog",
        image=pictures,
        mask_image=masks[:, :1],
        width=SIZE[0],
        height=SIZE[1],
        strength=1.0,
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        latents=starting_noise(model, [5], SIZE),
    ).images[0]
    difference = np.asarray(drawn, dtype=np.int16) - np.asarray(expected, dtype=np.int16)
    assert np.abs(difference).max() <= 1


def test_without_a_picture_everything_is_painted(directory):
    model = models.load(str(directory))
    batch = Batch(captions=CAPTIONS, original_size=torch.tensor([[48, 32], [48, 32]]))
    side = model.side_channels.make(batch)
    grey = model.vae.encode(torch.zeros(1, 3, 48, 32)).latent_dist.mode()
    assert side[:, :1].eq(1).all()
    expected = grey.expand(2, -1, -1, -1) * model.vae.config.scaling_factor
    torch.testing.assert_close(side[:, 1:], expected, rtol=0, atol=1e-5)
    options = {"prompts": ["a cat"], "seeds": [0], "size": SIZE, "num_inference_steps": 2}
    assert draw_images(model, [], **options)[0].size == SIZE


def test_random_masks_differ_between_images_and_steps():
    model = tiny_inpaint.make_sd()
    batch = Batch(captions=[""] * 8, pixel_values=make_pictures(8)[0])
    torch.manual_seed(1)
    first, second = (model.side_channels.make(batch)[:, 0] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(model.side_channels.make(batch)[:, 0], first)
    assert not torch.equal(first, second)
    assert len({mask.numpy().tobytes() for mask in first}) > 3


def test_grey_masks_are_cut_at_the_middle():
    model = tiny_inpaint.make_sd()
    masks = torch.cat([torch.full((1, 3, 32, 16), n / 255) for n in (127, 128)], dim=3)
    batch = Batch(captions=[""], pixel_values=torch.ones(1, 3, 32, 32), extras={"inpaint": masks})
    mask = model.side_channels.make(batch)[0, 0]
    assert torch.equal(mask, functional.pad(torch.ones(8, 4), (4, 0)))


@pytest.mark.parametrize(
    ("make", "said", "channels", "pipeline"),
    [
        (tiny_inpaint.make_sd, "StableDiffusionPipeline", 9, "StableDiffusionInpaintPipeline"),
        (tiny.make_sd, "StableDiffusionInpaintPipeline", 4, "StableDiffusionPipeline"),
        (
            tiny_inpaint.make_sdxl,
            "StableDiffusionXLPipeline",
            9,
            "StableDiffusionXLInpaintPipeline",
        ),
        (tiny.make_sdxl, "StableDiffusionXLInpaintPipeline", 4, "StableDiffusionXLPipeline"),
    ],
)
def test_the_unet_is_believed_rather_than_the_index(
    tmp_path, caplog, make, said, channels, pipeline
):
    directory = tiny.save_sd(tmp_path / "model", make=make)
    rewrite(directory / "model_index.json", _class_name=said)
    model = models.load(str(directory), weights=False)
    assert [record.message for record in caplog.records] == [
        f"{directory}: calls itself a {said}, but its UNet has {channels} input channels; it is "
        f"trained and saved as a {pipeline}"
    ]
    assert model.pipeline == pipeline
    assert model.latent_channels == 4


def test_a_controlnets_inpainting_pipeline_is_the_same_model(directory, tmp_path, caplog):
    model = models.load(str(directory))
    model.save_pretrained(tmp_path / "model", dtype=torch.float32)
    name = model.pipeline.replace("Inpaint", "ControlNetInpaint")
    assert hasattr(diffusers, name)
    rewrite(tmp_path / "model" / "model_index.json", _class_name=name)
    assert models.load(str(tmp_path / "model"), weights=False).pipeline == model.pipeline
    assert not caplog.records


def test_a_vae_of_other_channels_is_refused(tmp_path):
    directory = tiny.save_sd(tmp_path / "model", make=tiny_inpaint.make_sd)
    rewrite(directory / "vae" / "config.json", latent_channels=16)
    with pytest.raises(ValueError, match=r"the UNet takes 9 channels, the VAE gives 16; check mod"):
        models.load(str(directory), weights=False)


def test_what_is_shown_has_the_masked_part_grey():
    side = tiny_inpaint.make_sd().side_channels
    pictures, masks = make_pictures()
    shown = side.shown({"control": pictures, "picture": pictures, "inpaint": masks})
    assert list(shown) == ["picture", "masked", "control"]
    assert torch.equal(shown["masked"][0, :, 10, 10], torch.full((3,), 0.5))
    assert torch.equal(shown["masked"][0, :, 10, 25], pictures[0, :, 10, 25])


def test_a_dataset_without_masks_is_drawn_with_the_middle_hidden():
    side = tiny_inpaint.make_sd().side_channels
    pixels = torch.rand(3, 48, 32) * 2 - 1
    own = torch.ones(3, 48, 32)
    sample = Sample(name="a", caption="", pixel_values=pixels)
    extras = side.complete(sample).extras
    torch.testing.assert_close(extras["picture"], pixels / 2 + 0.5)
    assert extras["inpaint"].sum() == 3 * 24 * 16
    assert extras["inpaint"][:, 12:36, 8:24].eq(1).all()
    given = Sample(name="a", caption="", pixel_values=pixels, extras={"inpaint": own})
    assert side.complete(given).extras["inpaint"] is own


def test_picture_files_are_read_for_drawing(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "room.png")
    files = {"picture": [str(tmp_path / "room.png")], "inpaint": [str(tmp_path / "room.png")]}
    samples = [Sample(name=name, caption="") for name in "ab"]
    keys = ["picture", "inpaint"]
    first, second = find_guides(keys, files, samples, sizes=[SIZE, (64, 32)])
    assert first["picture"].shape == first["inpaint"].shape == (3, 48, 32)
    assert second["picture"].shape == (3, 32, 64)
