"""Row 13: out of memory, or growth, when images are drawn."""

from __future__ import annotations

import weakref

import torch

from modules import engine
from modules.config import load
from modules.memory import RunMemory
from modules.run_parts import load_parts
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
SAMPLE = {"prompts": ["a cat", "a dog"], "width": 32, "height": 32, "num_inference_steps": 1}
FULL_CARD = "CUDA out of memory."


def make_trainer(write_config, **sample):
    trainer = Trainer.from_config(load(write_config(networks=LORA, sample={**SAMPLE, **sample})))
    assert trainer is not None
    return trainer


def test_sampling_is_in_the_estimate(write_config):
    peaks = []
    for side in (32, 1024):
        sample = {**SAMPLE, "width": side, "height": side}
        config = load(write_config(networks=LORA, sample=sample))
        memory = RunMemory(config, load_parts(config, weights=False))
        estimate = memory.estimate("no", checkpointing=False)
        peaks.append(estimate.peak(1))
        assert estimate.phases(1)["sampling"] > estimate.kept
    assert peaks[1] > 1.1 * peaks[0]


def test_images_are_decoded_one_by_one_and_keep_no_graph(write_config, monkeypatch):
    trainer = make_trainer(write_config)
    seen = []
    decode = trainer.model.vae.decode

    def watch(latents, *args, **kwargs):
        seen.append((len(latents), torch.is_inference_mode_enabled()))
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(trainer.model.vae, "decode", watch)
    trainer.sampler.draw(trainer)
    assert seen == [(1, True), (1, True)]


def test_where_the_memory_is_too_small_decoding_is_tiled(write_config, monkeypatch):
    trainer = make_trainer(write_config)
    vae, decode, tiled = trainer.model.vae, trainer.model.vae.decode, []

    def fill_the_card(latents, *args, **kwargs):
        tiled.append(vae.use_tiling)
        if not vae.use_tiling:
            raise torch.OutOfMemoryError(FULL_CARD)
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(vae, "decode", fill_the_card)
    assert len(trainer.sampler.draw(trainer)) == 2
    assert tiled == [False, True, False, True]
    assert not vae.use_tiling


def test_a_failing_sample_ends_no_training_and_its_memory_returns(write_config, monkeypatch):
    trainer = make_trainer(write_config)
    made, left = [], []

    def fill_the_card(latents, *args, **kwargs):
        large = torch.empty(1000)
        made.append(weakref.ref(large))
        raise torch.OutOfMemoryError(FULL_CARD)

    def release(device):
        left.extend(reference() is not None for reference in made)

    monkeypatch.setattr(trainer.model.vae, "decode", fill_the_card)
    monkeypatch.setattr(engine, "release_memory", release)
    trainer.train()
    assert trainer.step == 2
    assert len(made) >= 2
    assert left
    assert not any(left)
