"""The moving average: its closed form, its files, and that training doesn't notice it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from safetensors.torch import load_file

from modules.averaging import MovingAverage
from modules.config import load
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


def train(path, *overrides) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    trainer.train()
    return trainer


def test_it_is_its_closed_form():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = MovingAverage([parameter], decay=0.5)
    expected = torch.zeros(2)
    for step in range(1, 12):
        with torch.no_grad():
            parameter.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.swapped_in():
        assert torch.allclose(parameter, expected)
    assert torch.equal(parameter.detach(), torch.full((2,), 11.0))


def test_it_is_put_back_after_an_error():
    parameter = torch.nn.Parameter(torch.ones(1))
    average = MovingAverage([parameter], decay=0.5)
    with torch.no_grad():
        parameter.fill_(3.0)
    with contextlib.suppress(RuntimeError), average.swapped_in():
        assert parameter.item() == 1.0
        raise RuntimeError
    assert parameter.item() == 3.0


@pytest.mark.parametrize("networks", [LORA, {}])
def test_it_is_saved_beside_the_weights(write_config, networks):
    model = {} if networks else {"trainable": ["unet.up_blocks"]}
    options = {"networks": networks, "model": model, "train": {"max_train_steps": 3}}
    plain = train(write_config("plain", **options))
    both = train(write_config("both", **options, ema={"decay": 0.9}))

    def weights(trainer, name):
        directory = trainer.directory
        file = (
            f"{name}.safetensors"
            if networks
            else f"{name}/unet/diffusion_pytorch_model.safetensors"
        )
        return load_file(directory / file)

    trained, average = weights(both, "both"), weights(both, "both-ema")
    assert trained.keys() == average.keys()
    assert any(not torch.equal(trained[key], average[key]) for key in trained)
    same = weights(plain, "plain")
    assert all(torch.equal(trained[key], same[key]) for key in same)  # training doesn't notice


def test_it_is_saved_instead_of_the_weights(write_config):
    options = {"networks": LORA, "train": {"max_train_steps": 3}}
    beside = train(write_config("beside", **options, ema={"decay": 0.9}))
    instead = train(write_config("instead", **options, ema={"decay": 0.9, "save": "instead"}))
    files = sorted(path.name for path in instead.directory.glob("*.safetensors"))
    assert files == ["instead.safetensors"]
    average = load_file(beside.directory / "beside-ema.safetensors")
    saved = load_file(instead.directory / "instead.safetensors")
    assert all(torch.equal(saved[key], average[key]) for key in average)


@pytest.mark.parametrize("sampled", [True, False])
def test_images_are_drawn_with_it_if_wanted(write_config, sampled):
    path = write_config(networks=LORA, ema={"decay": 0.9, "sample": sampled})
    trainer = train(path)
    parameter = trainer.groups[-1].parameters[-1]
    held = parameter.detach().clone()
    with trainer.sampled_weights():
        assert torch.equal(parameter.detach(), held) != sampled


def test_the_plan_names_its_files(write_config, capfd):
    config = load(write_config(networks=LORA, ema={"decay": 0.9}))
    Trainer.from_config(config, check=True)
    assert Trainer.from_config(config).versions().keys() == {"", "-ema"}
