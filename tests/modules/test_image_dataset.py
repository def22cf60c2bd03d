"""Pixels as a dataset: read from where they are, checked, augmented, trained on through the VAE."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_inpaint
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.buckets import BucketBatchSampler
from modules.config import load
from modules.dataset import ImageDataset, LatentDataset
from modules.errors import ConfigError
from modules.guides import fit, stack
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


AUGMENTED = {
    "flip": 0.5,
    "crop_jitter": 0.2,
    "rotation": 10,
    "color_jitter": [0.2, 0.2, 0.2, 0.05],
}


@pytest.fixture
def marked(tmp_path):
    """Images of one red square on grey; guide and mask show where it is."""
    path = tiny.save_dataset(tmp_path / "data", {(96, 64): 6, (64, 64): 2}, side_inputs=True)
    rng = np.random.default_rng(3)
    lines = []
    for file in sorted((path / "images").iterdir()):
        with Image.open(file) as image:
            width, height = image.size
        left, top = (side // 2 - rng.integers(0, 9) for side in (width, height))
        square = np.zeros((height, width), dtype=np.uint8)
        square[top : top + 8, left : left + 8] = 255
        pixels = np.full((height, width, 3), 100, dtype=np.uint8)
        pixels[square > 0] = (255, 0, 0)
        Image.fromarray(pixels).save(file)
        for folder in ("control", "inpaint"):
            (path / folder).mkdir(exist_ok=True)
            Image.fromarray(square).convert("RGB").save(path / folder / file.name)
        small = square.reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3)) / 255
        np.savez(path / "mask" / f"{file.stem}.npz", small.astype(np.float32))
        entry = {"name": file.stem, "original_size": [width, height], "crop_top_left": [0, 0]}
        lines.append(json.dumps(entry) + "\n")
    (path / "images.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


MARKED = {"mask": True, "extras": {"control": "image", "inpaint": "image", "pfg": "npz"}}


def centre(values):
    """The centre of mass of values (h, w): across, down."""
    height, width = values.shape
    both = values.sum(0) @ (torch.arange(width) + 0.5), values.sum(1) @ (torch.arange(height) + 0.5)
    return torch.stack(both) / values.sum()


def test_all_that_lies_on_an_image_goes_with_it(marked):
    dataset = ImageDataset(str(marked), **MARKED, **AUGMENTED)
    plain = ImageDataset(str(marked), **MARKED)
    assert dataset.read_geometry()
    moved, cut = 0, 0
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            sample, whole = dataset[index], plain[index]
            red = (sample.pixel_values[0] - sample.pixel_values[1:].mean(dim=0)).clamp(min=0)
            found = centre(red)
            torch.testing.assert_close(centre(sample.extras["control"][0]), found, atol=0.5, rtol=0)
            torch.testing.assert_close(
                centre((sample.extras["inpaint"][0] >= 0.5).float()), found, atol=1, rtol=0
            )
            torch.testing.assert_close(4 * centre(sample.mask[0]), found, atol=1, rtol=0)
            assert torch.equal(sample.extras["pfg"], whole.extras["pfg"])
            assert sample.original_size == tuple(whole.pixel_values.shape[1:])
            moved += int((found - centre(whole.extras["control"][0])).abs().max() > 1)
            cut += sample.crop_top_left != (0, 0)
    assert moved > 20
    assert cut > 20


def test_epoch_seed_and_number_alone_choose(marked):
    def read(dataset, epoch, workers):
        dataset.set_epoch(epoch)
        dataset.read_geometry()
        sampler = BucketBatchSampler(dataset.buckets, batch_size=2, shuffle=False)
        options = {"batch_sampler": sampler, "collate_fn": collate, "num_workers": workers}
        return list(DataLoader(dataset, **options))

    def same(one, other):
        return all(
            torch.equal(a.pixel_values, b.pixel_values)
            and torch.equal(a.mask, b.mask)
            and torch.equal(a.extras["control"], b.extras["control"])
            and torch.equal(a.crop_top_left, b.crop_top_left)
            for a, b in zip(one, other, strict=True)
        )

    options = {**MARKED, **AUGMENTED}
    dataset = ImageDataset(str(marked), **options)
    first = read(dataset, 0, 0)
    second = read(dataset, 1, 0)
    assert not same(first, second)
    assert same(read(ImageDataset(str(marked), **options), 1, 2), second)
    assert same(read(dataset, 0, 2), first)
    assert not same(read(ImageDataset(str(marked), seed=1, **options), 0, 0), first)


def test_an_image_to_be_looked_at_is_as_it_is(marked):
    dataset = ImageDataset(str(marked), **MARKED, **{**AUGMENTED, "flip": 1.0})
    whole, plain = dataset.whole_sample(1), ImageDataset(str(marked), **MARKED)[1]
    assert torch.equal(whole.pixel_values, plain.pixel_values)
    assert torch.equal(whole.mask, plain.mask)
    assert torch.equal(whole.extras["control"], plain.extras["control"])
    assert not torch.equal(dataset[1].pixel_values, plain.pixel_values)


def test_a_normalized_mask_is_so_after_the_cut(marked):
    options = {"mask": True, "normalize_mask": True, "crop_jitter": 0.3}
    dataset = ImageDataset(str(marked), **options)
    for index in range(len(dataset)):
        assert dataset[index].mask.mean().item() == pytest.approx(1, abs=1e-4)


def test_nonsense_is_said_before_a_model_is_loaded(marked, write_config):
    args = {"path": str(marked), "rotation": 50, "flip": 2}
    section = {"module": "modules.dataset.ImageDataset", "args": args}
    lora = {"lora": {"module": "networks.lora.LoRA"}}
    with pytest.raises(ConfigError, match=r"dataset: flip: 2\.0 is no probability.*rotation: 50"):
        Trainer.from_config(load(write_config("wrong", dataset=section, networks=lora)))


@pytest.mark.parametrize("family", ["sd", "sdxl", "inpainting"])
def test_training_with_all_of_it(marked, write_config, tmp_path, family):
    """Masks of the loss and of inpainting, a ControlNet, a PFG, every setting of augmentation."""
    make = {"sd": tiny.make_sd, "sdxl": tiny.make_sdxl, "inpainting": tiny_inpaint.make_sd}
    tiny.save_sd(tmp_path / "model", make=make[family])
    args = {"path": str(marked), **MARKED, **AUGMENTED}
    path = write_config(
        "augmented",
        model={"path": str(tmp_path / "model")},
        dataset={"module": "modules.dataset.ImageDataset", "args": args, "num_workers": 1},
        networks={
            "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}},
            "controlnet": {"module": "networks.controlnet.ControlNet"},
            "pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12}},
        },
        sample={"num_inference_steps": 1, "num_images": 1, "width": 32, "height": 32},
    )
    trainer = Trainer.from_config(load(path))
    batch = next(iter(trainer.source.loader))
    if family == "sdxl":
        conditions = trainer.model.size_conditions(batch)
        assert torch.equal(conditions[:, 2:4], batch.crop_top_left)
        assert batch.crop_top_left.sum() > 0
    plain = ImageDataset(str(marked), **MARKED)[0]
    guides = stack(trainer.sampler._guides)  # those of validation images stay as they are
    assert torch.equal(guides["control"][0], fit(plain.extras["control"], (32, 32)))
    before = [parameter.clone() for parameter in trainer.networks["lora"].parameters()]
    trainer.train()
    assert trainer.step == 2
    after = trainer.networks["lora"].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in trainer.networks["lora"].parameters())


def test_a_vae_is_trained_with_it_and_measured_without(marked, write_config):
    args = {"path": str(marked), "prompt": "", **AUGMENTED, "flip": 1.0}
    path = write_config(
        "vae",
        model={"trainable": ["vae.decoder"]},
        dataset={"module": "modules.dataset.ImageDataset", "args": args},
        objective={"module": "modules.reconstruction.Reconstruction"},
        sample={"num_images": 2},
    )
    trainer = Trainer.from_config(load(path))
    plain = ImageDataset(str(marked), prompt="")
    assert len(trainer.sampler.images) == 2
    for index, name in enumerate(plain.names):
        if name in trainer.sampler.images:
            assert torch.equal(trainer.sampler.images[name], plain[index].pixel_values)
    batch = next(iter(trainer.source.loader))
    index = plain.names.index(batch.names[0])
    assert not torch.equal(batch.pixel_values[0], plain[index].pixel_values)
    trainer.train()
    assert trainer.step == 2
