"""Training runs of inpainting models: whole, with masks of both kinds, all at once, refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import tiny
import tiny_inpaint
import torch
from diffusers import DiffusionPipeline, StableDiffusionControlNetInpaintPipeline
from families import BOTH, IMAGES, NETWORKS
from PIL import Image

from modules import models
from modules.config import load
from modules.errors import ConfigError
from modules.models.full_file import save_single_file
from modules.trainer import Trainer
from networks.controlnet import read_controlnet
from preprocess.class_images import class_images
from preprocess.text_cache import cache_text

MAKERS = {"sd": tiny_inpaint.make_sd, "sdxl": tiny_inpaint.make_sdxl}
SAMPLE = {"num_inference_steps": 2, "num_images": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """Inpainting models, `sd` and `sdxl`, and `data` with masks and side inputs."""
    place = tmp_path_factory.mktemp("inpainting")
    for name, make in MAKERS.items():
        tiny.save_sd(place / name, make=make)
    tiny.save_dataset(place / "data", {(32, 32): 4}, side_inputs=True)
    tiny_inpaint.save_masks(place / "data")
    return place


@pytest.fixture
def assemble(write_config, material):
    """Build a trainer; `model` and `dataset` add to their sections."""

    def build(family="sd", *, model=None, dataset=None, args=None, **sections) -> Trainer:
        own = {"path": str(material / "data"), **(args or {})}
        path = write_config(
            model={"path": str(material / family), **(model or {})},
            dataset={"module": IMAGES, "args": own, **(dataset or {})},
            **sections,
        )
        trainer = Trainer.from_config(load(path))
        assert trainer is not None
        return trainer

    return build


@pytest.mark.parametrize("family", MAKERS)
def test_full_training_saves_an_inpainting_model(assemble, family):
    trainer = assemble(family, model={"trainable": BOTH}, train={"max_train_steps": 2})
    before = trainer.model.denoiser.conv_in.weight.detach().clone()
    trainer.train()
    pipeline = DiffusionPipeline.from_pretrained(
        trainer.directory / trainer.name, local_files_only=True
    )
    assert type(pipeline).__name__ == trainer.model.pipeline
    saved = pipeline.unet.conv_in.weight
    assert torch.equal(saved, trainer.model.denoiser.conv_in.weight)
    moved = (saved - before).abs().amax(dim=(0, 2, 3)) > 0
    assert moved.tolist() == [True] * 9


@pytest.mark.parametrize("family", MAKERS)
def test_one_file_is_trained_to_one_file(assemble, material, tmp_path, family):
    source = tmp_path / "source.safetensors"
    save_single_file(models.load(str(material / family)), source, dtype=torch.float32)
    trainer = assemble(
        model={"path": str(source), "trainable": ["unet"]},
        save={"directory": str(tmp_path / "output"), "format": "single_file", "dtype": "fp32"},
    )
    trainer.train()
    trained = models.load(str(trainer.directory / "run.safetensors"))
    assert trained.pipeline == trainer.model.pipeline
    saved, own = trained.denoiser.state_dict(), trainer.model.denoiser.state_dict()
    assert own["conv_in.weight"].shape[1] == 9
    assert all(torch.equal(saved[key], own[key]) for key in own)


def test_a_controlnet_sees_the_sample_alone(assemble):
    networks = {"controlnet": NETWORKS["controlnet"]}
    trainer = assemble(args={"extras": {"control": "image"}}, networks=networks)
    net = trainer.networks["controlnet"].net
    base = trainer.model.denoiser.conv_in
    assert torch.equal(net.conv_in.weight, base.weight[:, :4])
    trainer.train()
    saved = read_controlnet(trainer.directory / "run")
    assert saved.config.in_channels == 4
    pieces = trainer.model.pieces()
    pipeline = StableDiffusionControlNetInpaintPipeline(
        **{**pieces, "controlnet": saved},
        scheduler=trainer.model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pictures = [Image.new(mode, (32, 32)) for mode in ("RGB", "L", "RGB")]
    drawn = pipeline(
        "a cat",
        image=pictures[0],
        mask_image=pictures[1],
        control_image=pictures[2],
        strength=1.0,
        num_inference_steps=2,
        width=32,
        height=32,
    )
    assert drawn.images[0].size == (32, 32)


@pytest.mark.parametrize("family", MAKERS)
def test_everything_at_once(assemble, material, tmp_path, family):
    data = shutil.copytree(material / "data", tmp_path / "data")
    cache_text(directory=data, model=str(material / family))
    prior = tiny.save_dataset(
        tmp_path / "prior", {(32, 48): 2}, captions=["a dog"], side_inputs=True
    )
    trainer = assemble(
        family,
        args={
            "path": str(data),
            "mask": True,
            "text_cache": True,
            "extras": {"control": "image"},
        },
        prior={"module": IMAGES, "args": {"path": str(prior), "extras": {"control": "image"}}},
        networks={
            "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}},
            "controlnet": NETWORKS["controlnet"],
        },
        train={
            "max_train_steps": 2,
            "batch_size": 4,
            "minibatch_repeat": 2,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "mixed_precision": "bf16",
            "tome_ratio": 0.5,
        },
        ema={"decay": 0.9},
        sample={**SAMPLE, "prompts": ["a red cat", "a dog", "a mat"]},
    )
    trainer.train()
    assert trainer.step == 2


def test_repeats_of_an_image_get_masks_of_their_own(assemble):
    trainer = assemble(
        networks={"lora": NETWORKS["lora"]},
        train={"max_train_steps": 1, "batch_size": 8, "minibatch_repeat": 8},
    )
    batch = trainer.model.encode(next(iter(trainer.source.loader))).repeat(8)
    masks = trainer.model.encode_prompts(batch)["side_channels"][:, 0]
    assert len({mask.numpy().tobytes() for mask in masks}) > 2


def test_a_run_is_repeated_and_another_seed_is_another_run(assemble):
    losses = []
    for seed in (0, 0, 1):
        networks = {"lora": NETWORKS["lora"]}
        trainer = assemble(networks=networks, train={"max_train_steps": 2, "seed": seed})
        group = next(trainer.step_groups())
        losses.append(trainer.loss(group[0].batch).item())
    assert losses[0] == losses[1] != losses[2]


def test_masks_of_the_dataset_are_used_and_said(assemble, caplog):
    caplog.set_level(logging.INFO)
    networks = {"lora": NETWORKS["lora"]}
    trainer = assemble(args={"extras": {"inpaint": "image"}}, networks=networks)
    assert "inpainting: the masks are those of the dataset's inpaint/" in caplog.messages
    batch = next(iter(trainer.source.loader))
    mask = trainer.model.encode_prompts(batch)["side_channels"][:, :1]
    small = batch.extras["inpaint"][:, :1, ::4, ::4]
    assert torch.equal(mask, small)
    assemble(networks=networks)
    assert (
        "inpainting: masks are drawn at random; with a folder inpaint/ of mask images write "
        "`extras: {inpaint: image}` in dataset.args"
    ) in caplog.messages


def test_a_sheet_shows_picture_masked_picture_and_result(assemble):
    networks = {"lora": NETWORKS["lora"]}
    trainer = assemble(networks=networks, sample={**SAMPLE, "num_images": 1})
    trainer.train()
    with Image.open(trainer.directory / "samples" / "step00000002.png") as sheet:
        assert sheet.width == 3 * (192 + 8) + 8
    with Image.open(trainer.directory / "before_after.png") as sheet:
        assert sheet.width == 4 * (192 + 8) + 8


def test_pictures_and_masks_of_files_are_drawn(assemble, material):
    file = str(material / "data" / "images" / "image000.png")
    mask = str(material / "data" / "inpaint" / "image000.png")
    networks = {"lora": NETWORKS["lora"]}
    sample = {**SAMPLE, "extras": {"picture": [file], "inpaint": [mask]}, "prompts": ["a", "b"]}
    sampler = assemble(networks=networks, sample=sample).sampler
    with Image.open(file) as image:
        expected = torch.tensor(list(image.getdata())).view(32, 32, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(sampler._guides[1]["picture"], expected)
    assert [guides["inpaint"].shape for guides in sampler._guides] == [(3, 32, 32)] * 2


def test_cached_latents_are_refused(assemble):
    networks = {"lora": NETWORKS["lora"]}
    latents = {"module": "modules.dataset.LatentDataset"}
    message = (
        "has no pixel_values, and an inpainting model is trained on pictures of which a part is "
        "hidden; write `module: modules.dataset.ImageDataset`"
    )
    with pytest.raises(ConfigError) as error:
        assemble(networks=networks, dataset=latents)
    assert str(error.value) == f"dataset: image000: {message}"


def test_cached_latents_of_class_images_are_refused(assemble, dataset_directory):
    networks = {"lora": NETWORKS["lora"]}
    with pytest.raises(ConfigError, match=r"prior: image000: has no pixel_values, and an inpaint"):
        assemble(networks=networks, prior={"args": {"path": str(dataset_directory)}})


def test_masks_that_are_no_images_are_refused(assemble, material, tmp_path):
    data = shutil.copytree(material / "data", tmp_path / "data")
    shutil.rmtree(data / "inpaint")
    shutil.copytree(data / "mask", data / "inpaint")
    args = {"path": str(data), "extras": {"inpaint": "npz"}}
    with pytest.raises(ConfigError) as error:
        assemble(args=args, networks={"lora": NETWORKS["lora"]})
    assert str(error.value) == (
        "dataset: 'inpaint' has shape (8, 8), for inpainting it is an image, (3, H, W); write "
        "`inpaint: image` in dataset.args.extras, and name image files in sample.extras"
    )


def test_mask_files_for_drawing_that_are_no_images_are_refused(assemble, material):
    array = str(material / "data" / "mask" / "image000.npz")
    sample = {**SAMPLE, "extras": {"inpaint": [array]}}
    with pytest.raises(ConfigError, match=r"^sample: 'inpaint' has shape \(8, 8\), for inpaint"):
        assemble(networks={"lora": NETWORKS["lora"]}, sample=sample)


def test_missing_and_odd_masks_are_named(assemble, material, tmp_path):
    data = shutil.copytree(material / "data", tmp_path / "data")
    Image.new("L", (16, 16)).save(data / "inpaint" / "image001.png")
    args = {"path": str(data), "extras": {"inpaint": "image"}}
    with pytest.raises(ConfigError, match=r"inpaint/image001\.png: size \(16, 16\) is not bucket"):
        assemble(args=args, networks={"lora": NETWORKS["lora"]})
    (data / "inpaint" / "image002.png").unlink()
    with pytest.raises(ConfigError, match=r"inpaint: 1 of 4 missing: image002; add them to inp"):
        assemble(args=args, networks={"lora": NETWORKS["lora"]})


def test_class_images_are_drawn_from_the_prompt_alone(material, tmp_path):
    class_images(
        output=tmp_path,
        model=str(material / "sd"),
        prompt="a dog",
        count=2,
        width=32,
        height=32,
        num_inference_steps=2,
    )
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize("family", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_four_pictures_are_learned_by_heart(assemble, family):
    trainer = assemble(
        family,
        model={"trainable": ["unet"]},
        train={"max_train_steps": 160, "batch_size": 4, "learning_rate": 4e-3},
        lr_scheduler={"name": "cosine"},
    )
    batch = next(iter(trainer.source.loader))

    @torch.no_grad()
    def mean_loss() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return sum(trainer.loss(batch).item() for _ in range(16)) / 64

    before = mean_loss()
    trainer.train()
    after = mean_loss()
    assert after < 0.1 * before, (before, after)
