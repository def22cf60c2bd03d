"""Pixels as a dataset: read from where they are, checked, trained on through the VAE."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from PIL import Image

from modules.config import load
from modules.dataset import ImageDataset, LatentDataset
from modules.images import open_image, to_tensor
from modules.trainer import Trainer


def test_pixels_come_with_all_that_latents_come_with(tmp_path):
    path = tiny.save_dataset(tmp_path / "data", {(32, 48): 2}, side_inputs=True)
    options = {"mask": True, "extras": {"control": "image"}, "prefix": "photo of "}
    pixels, latents = (kind(str(path), **options) for kind in (ImageDataset, LatentDataset))
    sample, other = pixels[1], latents[1]
    expected = to_tensor(open_image(path / "images" / "image001.png"))
    assert torch.equal(sample.pixel_values, expected)
    assert sample.pixel_values.shape == (3, 48, 32)
    assert sample.latents is None
    assert sample.caption == other.caption
    assert torch.equal(sample.mask, other.mask)
    assert torch.equal(sample.extras["control"], other.extras["control"])
    assert pixels.provides == latents.provides


def test_images_of_an_older_dataset_lie_beside_the_buckets(tmp_path):
    path = tiny.save_dataset(tmp_path / "data")
    for image in (path / "images").iterdir():
        shutil.move(image, path / image.name)
    assert ImageDataset(str(path))[0].pixel_values.shape == (3, 32, 32)


def test_missing_and_odd_images_are_named(tmp_path):
    path = tiny.save_dataset(tmp_path / "data")
    dataset = ImageDataset(str(path))
    Image.new("RGB", (16, 16)).save(path / "images" / "image002.png")
    with pytest.raises(ValueError, match=r"images/image002\.png: size \(16, 16\) is not bucket"):
        dataset.check_latent_shapes(4, 4)
    (path / "images" / "image003.png").unlink()
    with pytest.raises(ValueError, match=r"images: 1 of 4 missing: image003; run preproc"):
        ImageDataset(str(path))


def test_training_on_pixels_equals_training_on_their_latents(write_config, tmp_path):
    path = tiny.save_dataset(tmp_path / "data")
    sections = {
        "networks": {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}},
        "dataset": {"module": "modules.dataset.ImageDataset", "args": {"path": str(path)}},
    }
    trainer = Trainer.from_config(load(write_config("pixels", **sections)))
    batch = next(iter(trainer.source.loader))
    assert batch.latents is None
    vae = trainer.model.vae
    with torch.no_grad():
        posterior = vae.encode(batch.pixel_values).latent_dist  # drawn from after the same seed
    torch.manual_seed(3)
    on_pixels = trainer.loss(batch)
    torch.manual_seed(3)
    on_latents = trainer.loss(replace(batch, pixel_values=None, latents=posterior.sample()))
    assert torch.equal(on_pixels, on_latents)
    trainer.train()
    assert trainer.step == 2
