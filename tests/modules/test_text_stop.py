"""Text encoders rest after the step that is given; everything else goes on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from modules.config import load
from modules.errors import ConfigError
from modules.text_stop import TextStop
from modules.trainer import Trainer

LORA = {
    "lora": {
        "module": "networks.lora.LoRA",
        "args": {"rank": 2, "targets": ["unet", "text_encoders"]},
    }
}


def snapshot(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        group.name + str(n): parameter.detach().clone()
        for group in trainer.groups
        for n, parameter in enumerate(group.parameters)
    }


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    "sections",
    [{"networks": LORA}, {"model": {"trainable": ["unet.up_blocks", "text_encoders"]}}],
    ids=["lora", "full"],
)
def test_text_encoders_rest_and_the_unet_goes_on(write_config, sections, alone):
    path = write_config(**sections, train={"stop_text_encoders_after": 2, "max_train_steps": 5})
    trainer = Trainer.from_config(load(path))
    trainer.text_stop._alone = alone
    groups = trainer.step_groups()
    held = [snapshot(trainer)]
    for finished in range(4):
        trainer.step = finished
        trainer.train_step(next(groups))
        held.append(snapshot(trainer))
    text = [name for name in held[0] if "text_encoders" in name]
    unet = [name for name in held[0] if "unet" in name]
    assert text
    assert unet
    moved = [
        {name for name in before if not torch.equal(before[name], after[name])}
        for before, after in pairwise(held)
    ]
    assert moved[1] & set(text)
    assert not moved[2] & set(text)
    assert not moved[3] & set(text)
    assert moved[3] >= {name for name in unet if name in moved[1]}


def test_the_backward_pass_of_resting_text_encoders_is_saved(write_config):
    path = write_config(networks=LORA, train={"stop_text_encoders_after": 1, "max_train_steps": 2})
    trainer = Trainer.from_config(load(path))
    calls = []
    layer = trainer.model.text_encoders[0].module.encoder.layers[0]
    layer.register_full_backward_hook(lambda *_: calls.append(trainer.step))
    trainer.train()
    assert calls == [0]  # no step was finished then


def test_without_a_step_nothing_rests():
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    model = type("Model", (), {"text_needs_gradients": True})()
    stop = TextStop(model, [parameter], after=None)
    stop.begin_step(10**6)
    stop.drop_gradients(10**6)
    assert model.text_needs_gradients
    assert parameter.grad is not None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["unet"], "no text encoder is trained"),
        (["text_encoders"], "nothing is left to train after step 1"),
    ],
)
def test_a_stop_that_makes_no_sense_is_refused(write_config, targets, message):
    network = {**LORA["lora"], "args": {"rank": 2, "targets": targets}}
    path = write_config(networks={"lora": network}, train={"stop_text_encoders_after": 1})
    with pytest.raises(ConfigError, match=message):
        Trainer.from_config(load(path))
