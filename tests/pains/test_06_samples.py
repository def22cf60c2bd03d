"""The trainer's samples are others than ComfyUI or A1111 draw with the same file."""

from __future__ import annotations

import pytest
import torch
from interrupted_runs import assemble
from PIL import Image, ImageChops

from modules.drawing import starting_noise

TRAINED = {"module": "networks.lora.LoRA", "args": {"rank": 4, "targets": ["unet"]}}
SAMPLE = {
    "prompts": ["a cat --n a dog --d 7 --l 4.5 --s 3 --ss euler --m 0.5", "a red cat"],
    "width": 64,
    "height": 32,
    "num_inference_steps": 4,
}


def drawn(trainer, step):
    files = sorted((trainer.directory / "samples" / f"step{step:08d}").iterdir())
    return [Image.open(file) for file in files]


def same(ones, others):
    pairs = zip(ones, others, strict=True)
    return all(ImageChops.difference(*pair).getbbox() is None for pair in pairs)


def test_a_picture_says_how_it_was_drawn(write_config):
    path = write_config(
        networks={"lora": TRAINED},
        model={**_model(write_config), "clip_skip": 2},
        sample={**SAMPLE, "as_saved": True},
        save={"dtype": "fp16"},
    )
    trainer = assemble(path)
    trainer.train()
    first, second = (picture.text["parameters"].splitlines() for picture in drawn(trainer, 2))
    assert first[:2] == ["a cat", "Negative prompt: a dog"]
    for said in (
        *("Steps: 3", "Sampler: Euler", "CFG scale: 4.5", "Seed: 7", "Size: 64x32"),
        *("Multiplier: 0.5", "Clip skip: 2", "Weights: fp16", "Training step: 2"),
    ):
        assert said in first[2].split(", ")
    assert second[0] == "a red cat"
    assert "Seed: 1" in second[1].split(", ")


def test_pictures_as_saved_are_those_of_the_file(write_config):
    """Weights in bf16 keep 8 bits, which is to be seen."""
    sections = {"networks": {"lora": TRAINED}, "train": {"learning_rate": 0.5}}
    trained, exact, read = (
        write_config(name, **sections, sample=SAMPLE | more, save={"dtype": "bf16"})
        for name, more in (("trained", {"as_saved": True}), ("exact", {}), ("read", {}))
    )
    trainer, other = assemble(trained), assemble(exact)
    for one in (trainer, other):
        one.train()
    file = trainer.directory / "trained.safetensors"
    reader = assemble(read, f"networks.lora.resume={file}", "train.max_train_steps=1")
    reader.train()
    assert same(drawn(trainer, 2), drawn(reader, 0))
    assert not same(drawn(other, 2), drawn(reader, 0))
    kept, live = (list(one.networks["lora"].parameters()) for one in (trainer, other))
    assert all(torch.equal(a, b) for a, b in zip(kept, live, strict=True))  # and came back


def test_noise_is_that_of_a_cpu_generator_with_the_seed(write_config):
    """As ComfyUI's prepare_noise: one image, one seed, whatever the device and the batch are."""
    model = assemble(write_config(networks={"lora": TRAINED})).model
    noise = starting_noise(model, [7, 8], (64, 32))
    for row, seed in zip(noise, (7, 8), strict=True):
        own = torch.randn((1, 4, 8, 16), generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(row, own[0])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_picture_does_not_depend_on_its_neighbours(write_config, batch_size):
    several = {**SAMPLE, "prompts": ["a dog", "a red cat", "a cat --d 9"], "seed": 5}
    path = write_config("several", networks={"lora": TRAINED}, sample=several)
    trainer = assemble(path)
    trainer.sampler.batch_size = batch_size
    trainer.train()
    alone = {**SAMPLE, "prompts": ["a red cat"], "seed": 6}
    single = assemble(write_config("alone", networks={"lora": TRAINED}, sample=alone))
    single.train()
    assert same(drawn(trainer, 2)[1:2], drawn(single, 2))


def _model(write_config):
    import yaml

    return yaml.safe_load(write_config("probe").read_text())["model"]
