"""Reconstructions of images, measured and shown."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from modules.dataset import ImageDataset
from modules.images import open_image, to_tensor
from modules.models.autoencoder import Autoencoder
from modules.reconstruction_sampler import ReconstructionSampler, psnr


def test_psnr_in_closed_form():
    image = torch.zeros(3, 8, 8)
    assert psnr(image + 0.2, image) == pytest.approx(20.0, abs=1e-4)  # a tenth of the range
    assert psnr(image + 0.02, image) == pytest.approx(40.0, abs=1e-3)
    assert psnr(image - 1.0, image) == pytest.approx(20 * math.log10(2), abs=1e-4)
    half = image.clone()
    half[:, :4] = 0.2
    assert psnr(half, image) == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)
    assert psnr(image + 7.0, image + 1.0) == math.inf  # cut off, as in a picture
    bytes_, others = (np.random.default_rng(n).integers(0, 256, (3, 8, 8)) for n in (0, 1))
    expected = 10 * math.log10(255**2 / np.mean((bytes_ - others) ** 2.0))
    pair = [torch.tensor(values).float() / 127.5 - 1 for values in (bytes_, others)]
    assert psnr(*pair) == pytest.approx(expected, abs=1e-4)


class Run:
    """The part of a run that the sampler needs."""

    def __init__(self, directory):
        self.directory, self.step, self.steps_per_epoch = directory, 0, 2
        self.model = Autoencoder(tiny.make_sd().vae)
        self.measured: list[dict] = []
        self.shown: list[str] = []

    def sampled_weights(self):
        return contextlib.nullcontext()

    def log_metrics(self, measured):
        self.measured.append(measured)

    def log_images(self, key, images, captions):
        self.shown += captions


def test_reconstructions_are_measured_when_due_and_compared_at_the_end(tmp_path):
    dataset = ImageDataset(str(tiny.save_dataset(tmp_path / "data", {(32, 32): 3, (48, 32): 3})))
    sampler = ReconstructionSampler(num_images=3, every_steps=2)
    run = Run(tmp_path)
    sampler.prepare(model=run.model, networks={}, dataset=dataset)
    assert list(sampler.images) == ["image000", "image002", "image004"]
    random = torch.get_rng_state()
    for step, last in ((0, False), (1, False), (2, False), (3, True)):
        run.step = step
        sampler.sample_if_due(run, last=last)
        with torch.no_grad():
            run.model.vae.decoder.conv_out.bias += 0.1
    assert torch.equal(torch.get_rng_state(), random)
    drawn = sorted(path.name for path in (tmp_path / "samples").glob("*.png"))
    assert drawn == ["step00000000.png", "step00000002.png", "step00000003.png"]
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.width > 6 * 192  # two cells in a row, each with three pictures
    values = [value for measured in run.measured for value in measured.values()]
    assert run.shown == [f"PSNR: {value:.2f} dB" for value in values]
    assert [list(measured) for measured in run.measured] == [["psnr"]] * 3
    assert len(set(values)) == 3
    vae = tiny.make_sd().vae
    with torch.no_grad():
        means = []
        for index in (0, 2, 4):
            pixels = dataset[index].pixel_values[None]
            found = vae.decode(vae.encode(pixels).latent_dist.mean).sample
            error = (found.clamp(-1, 1) - pixels).square().mean()
            means.append(10 * math.log10(4 / error))
    assert values[0] == pytest.approx(sum(means) / 3, abs=1e-3)


def test_pictures_of_a_folder_are_cropped_to_what_the_vae_takes(tmp_path):
    folder = tmp_path / "held"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (35, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    sampler = ReconstructionSampler(pictures=str(folder))
    sampler.prepare(model=Run(tmp_path).model, networks={}, dataset=None)
    (image,) = sampler.images.values()
    whole = to_tensor(open_image(folder / "a.png"))
    assert torch.equal(image, whole[:, 1:33, 1:29])
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"^pictures: .*held is no folder with images in it$"):
        ReconstructionSampler(pictures=str(folder))
