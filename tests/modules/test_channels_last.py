"""Convolutions with their channels last: stored so, the same in training and in files."""

import pytest
import torch
from safetensors.torch import load_file

from modules.config import load
from modules.trainer import Trainer

LOCON = {"locon": {"module": "networks.lora.LoRA", "args": {"rank": 2, "conv_rank": 2}}}
OPTION = "train.channels_last=true"


def is_last(weight):
    return weight.is_contiguous(memory_format=torch.channels_last)


def train(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    trainer.train()
    return trainer


def test_weights_are_stored_so(write_config):
    path = write_config(networks=LOCON)
    plain, last = (Trainer.from_config(load(path, *o)) for o in ((), (OPTION,)))
    weights = [
        [p for p in run.model.denoiser.parameters() if p.dim() == 4 and p.shape[2] > 1]
        for run in (plain, last)
    ]
    assert weights[0]
    assert not any(is_last(weight) for weight in weights[0])
    assert all(is_last(weight) for weight in weights[1])
    assert sum(w.untyped_storage().nbytes() for w in weights[0]) == sum(
        w.untyped_storage().nbytes() for w in weights[1]
    )


@pytest.mark.parametrize("name", ["locon", "full", "blocks", "offload", "int8"])
def test_files_have_what_is_trained_without_it(write_config, name):
    sections = {
        "locon": {"networks": LOCON},
        "full": {"model": {"trainable": ["unet"]}, "ema": {"decay": 0.9}},
        "blocks": {"networks": LOCON, "train": {"gradient_checkpointing": ["unet.up_blocks"]}},
        "offload": {"networks": LOCON, "model": {"offload_blocks": 4}},
        "int8": {"networks": LOCON, "model": {"quantize": "int8"}},
    }[name]
    path = write_config(**sections, save={"state": True})
    files = []
    for overrides in (["save.name=plain"], ["save.name=last", OPTION]):
        directory = train(path, *overrides).directory
        found = sorted(directory.rglob("*.safetensors"))
        found = [file for file in found if "state" not in file.relative_to(directory).parts[0]]
        files.append([load_file(file) for file in found])
    assert files[0]
    for one, other in zip(*files, strict=True):
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.allclose(tensor.float(), other[key].float(), atol=2e-3), key


def test_it_is_resumed(write_config):
    path = write_config(
        model={"trainable": ["unet"]}, save={"state": True}, train={"max_train_steps": 2}
    )
    whole = train(path, "save.name=whole", OPTION, "train.max_train_steps=4")
    train(path, "save.name=half", OPTION)
    go_on = ["train.resume=auto", "train.accept_changes=[train.max_train_steps]"]
    again = train(path, "save.name=half", OPTION, "train.max_train_steps=4", *go_on)
    for one, other in zip(
        whole.model.denoiser.parameters(), again.model.denoiser.parameters(), strict=True
    ):
        assert torch.equal(one, other)
