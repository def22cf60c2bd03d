"""Cached latents of mirrored images: chosen at random, with all that lies on them mirrored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny
import torch

from modules.config import load
from modules.dataset import LatentDataset
from modules.trainer import Trainer
from preprocess.latent import latent
from preprocess.text_cache import cache_text

SIDES = {"mask": True, "extras": {"control": "image", "pfg": "npz"}}


@pytest.fixture
def data(tmp_path, model_directory):
    path = tiny.save_dataset(tmp_path / "data", {(32, 48): 5, (32, 32): 3}, side_inputs=True)
    latent(directory=path, model=str(model_directory), flip=True)
    return path


def test_one_or_the_other_and_all_that_lies_on_it(data):
    dataset, plain = LatentDataset(str(data), flip=0.5, **SIDES), LatentDataset(str(data), **SIDES)
    mirrored = 0
    for epoch in range(8):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            sample, whole = dataset[index], plain[index]
            is_mirrored = not torch.equal(sample.latents, whole.latents)
            mirrored += is_mirrored
            if is_mirrored:
                file = data / "latents_flipped" / f"{sample.name}.npy"
                assert torch.equal(sample.latents, torch.from_numpy(np.load(file)))
            for one, other in (
                (sample.mask, whole.mask),
                (sample.extras["control"], whole.extras["control"]),
            ):
                assert torch.equal(one, other.flip(-1) if is_mirrored else other)
            assert torch.equal(sample.extras["pfg"], whole.extras["pfg"])
    assert 20 < mirrored < 44  # of 64; three sigma are 12
    assert torch.equal(dataset.whole_sample(0).latents, plain[0].latents)


def test_what_can_not_be_done_to_latents(data):
    options = {"rotation": 5, "color_jitter": 0.1, "flip": 0.5}
    with pytest.raises(ValueError, match="rotation: cached latents can be mirrored only") as caught:
        LatentDataset(str(data), **options)
    assert "\n  color_jitter: cached latents can be mirrored only; write " in str(caught.value)


def test_prepare_makes_them_and_a_run_takes_them(data, write_config, model_directory):
    for folder in ("latents", "latents_flipped"):
        shutil.rmtree(data / folder)
    prepare = {"directory": str(data), "model": str(model_directory), "flip": True}
    path = write_config(
        "flipped",
        prepare=[{"module": "preprocess.latent.latent", "args": prepare}],
        dataset={"args": {"path": str(data), "flip": 0.5, "text_cache": True, **SIDES}},
        networks={
            "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}},
            "controlnet": {"module": "networks.controlnet.ControlNet"},
        },
    )
    cache_text(directory=data, model=str(model_directory))
    trainer = Trainer.from_config(load(path))
    assert len(list((data / "latents_flipped").glob("*.npy"))) == 8
    trainer.train()
    assert trainer.step == 2
