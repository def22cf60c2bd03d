"""Gradient checkpointing of all blocks, of named ones, of none."""

import pytest
import torch

from modules.checkpointing import as_key
from modules.config import load
from modules.errors import ConfigError
from modules.memory import RunMemory
from modules.memory_table import memory_lines
from modules.run_parts import load_parts
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4, "targets": ["unet"]}}}
BOTH = {
    "lora": {
        "module": "networks.lora.LoRA",
        "args": {"rank": 4, "targets": ["unet", "text_encoders"]},
    }
}


@pytest.fixture
def gradients(write_config):
    """Gradients of a step and how often each attention ran, with these blocks checkpointed."""

    def run(chosen, networks=LORA):
        config = load(write_config(networks=networks, train={"gradient_checkpointing": chosen}))
        trainer = Trainer.from_config(config)
        runs = {}
        for root, module in trainer.model.components().items():
            for path, part in module.named_modules():
                if path.endswith(("attn1", "self_attn")):
                    name = f"{root}.{path}"
                    runs[name] = 0
                    part.register_forward_pre_hook(lambda *_, name=name: _count(runs, name))
        trainer.optimizer.zero_grad = lambda **_: None
        trainer.train_step(next(trainer.step_groups()))
        return {
            name: p.grad.clone() for name, p in trainer.networks["lora"].named_parameters()
        }, runs

    return run


def _count(runs, name):
    runs[name] += 1


def test_only_the_named_blocks_are_computed_again(gradients):
    plain, once = gradients(False)
    named, some = gradients(["unet.up_blocks"])
    every, all_again = gradients(True)
    assert set(once.values()) == {1}
    unet = {name: count for name, count in some.items() if name.startswith("unet.")}
    assert {count for name, count in unet.items() if ".up_blocks." in name} == {2}
    assert {count for name, count in unet.items() if ".up_blocks." not in name} == {1}
    assert all(count == 2 for name, count in all_again.items() if name.startswith("unet."))
    for name, gradient in plain.items():
        assert torch.allclose(gradient, named[name], atol=1e-6), name
        assert torch.allclose(gradient, every[name], atol=1e-6), name


def test_a_pattern_names_kinds_of_blocks(gradients):
    _, runs = gradients(["unet.*.attentions"])
    assert {count for name, count in runs.items() if name.startswith("unet.")} == {2}


def test_text_encoders_by_themselves(gradients):
    plain, _ = gradients(False, BOTH)
    named, runs = gradients(["text_encoders"], BOTH)
    layers = [count for name, count in runs.items() if name.startswith("text_encoders.")]
    assert layers
    assert layers[-1] == 2  # the last; what is before the first gradient isn't computed again
    assert {count for name, count in runs.items() if name.startswith("unet.")} == {1}
    assert all(torch.allclose(plain[name], named[name], atol=1e-6) for name in plain)


def test_a_block_that_is_not_there_is_named(write_config):
    train = {"gradient_checkpointing": ["unet.upblocks"]}
    with pytest.raises(ConfigError) as error:
        Trainer.from_config(load(write_config(networks=LORA, train=train)))
    assert "train.gradient_checkpointing: the pattern 'unet.upblocks' matches no" in str(
        error.value
    )
    assert "unet.up_blocks" in str(error.value)


def test_an_empty_list_is_none(write_config):
    config = load(write_config(networks=LORA, train={"gradient_checkpointing": []}))
    trainer = Trainer.from_config(config)
    assert as_key([]) is False
    assert not trainer.model.denoiser.is_gradient_checkpointing


def test_the_estimate_lies_between_none_and_all(write_config):
    train = {"gradient_checkpointing": ["unet.up_blocks"]}
    config = load(write_config(networks=LORA, train=train))
    memory = RunMemory(config, load_parts(config, weights=False))
    none, some, every = (
        memory.estimate("no", checkpointing=chosen).step.at(4)
        for chosen in (False, ["unet.up_blocks"], True)
    )
    assert every < some < none


def test_the_table_has_a_row_for_these_blocks(write_config):
    train = {"gradient_checkpointing": ["unet.up_blocks"]}
    config = load(write_config(networks=LORA, train=train))

    def reload(changed):
        return load_parts(changed, weights=False)

    lines = memory_lines(config, reload(config), reload)
    rows = [line for line in lines if line.startswith("no, these blocks")]
    assert len(rows) == 1
    assert "[" in rows[0]
