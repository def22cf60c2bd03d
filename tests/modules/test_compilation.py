"""Compiled blocks: the same gradients, each kind of block compiled once."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch.profiler import ProfilerActivity, profile

from modules.compilation import compilation_faults, compile_blocks, find_repeated
from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer

NETWORKS = {
    "lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}},
    "locon": {"module": "networks.lora.LoRA", "args": {"rank": 4, "conv_rank": 2}},
    "loha": {"module": "networks.loha.LoHa", "args": {"rank": 2}},
    "lokr": {"module": "networks.lokr.LoKr", "args": {"rank": 2}},
}


def long(values):
    """A case that is tried with the long tests."""
    return pytest.param(values, marks=[pytest.mark.slow, pytest.mark.exhaustive])


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def gradients(trainer):
    for group in trainer.groups:
        for number, parameter in enumerate(group.parameters):
            torch.manual_seed(number)  # zeros would let most of a network's gradients be zero
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    group = next(trainer.step_groups())
    torch.manual_seed(1)
    with trainer.accelerator.autocast():
        trainer.loss(group[0].batch).backward()
    return [p.grad.clone() for each in trainer.groups for p in each.parameters]


def assemble(write_config, *overrides, **sections):
    return Trainer.from_config(load(write_config(**sections), *overrides))


@pytest.mark.parametrize(
    "sections",
    [
        {"networks": {"lora": NETWORKS["lora"]}},
        *(long({"networks": {name: NETWORKS[name]}}) for name in ("locon", "loha", "lokr")),
        long({"model": {"trainable": ["unet"]}}),
        long({"networks": {"lora": NETWORKS["lora"]}, "train": {"gradient_checkpointing": True}}),
        long({"networks": {"lora": NETWORKS["lora"]}, "train": {"mixed_precision": "bf16"}}),
        long({"networks": {"lora": NETWORKS["lora"]}, "model": {"quantize": "int8"}}),
    ],
    ids=[*NETWORKS, "full", "checkpointing", "bf16", "int8"],
)
def test_gradients_are_those_of_blocks_that_are_not(write_config, sections, fresh_compiler):
    plain = gradients(assemble(write_config, **sections))
    trainer = assemble(write_config, **sections)
    count = compile_blocks(trainer.model, trainer.networks, backend="aot_eager")
    assert count == len(find_repeated(trainer.model, trainer.networks)) > 10
    compiled = gradients(trainer)
    assert 0 < counters["stats"]["unique_graphs"] < count  # alike blocks share theirs
    assert not counters["graph_break"]
    low = sections.get("train", {}).get("mixed_precision") == "bf16"
    for one, other in zip(plain, compiled, strict=True):
        scale = one.abs().max().clamp(min=1e-6)
        assert (one - other).abs().max() / scale < (0.1 if low else 1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_launches_less(write_config, fresh_compiler):
    path = write_config(networks={"lora": NETWORKS["lora"]}, train={"max_train_steps": 2})
    counts, losses = [], []
    for compiled in ("false", "true"):
        trainer = Trainer.from_config(load(path, f"train.compile={compiled}"))
        group = next(trainer.step_groups())
        trainer.train_step(group)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            losses.append(trainer.train_step(group)["loss"].item())
        counts.append(sum(e.count for e in profiler.key_averages() if e.key.startswith("aten::")))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert counts[1] < 0.7 * counts[0]


@pytest.mark.parametrize(
    ("override", "named"),
    [("model.offload_blocks=3", "model.offload_blocks"), ("train.tome_ratio=0.5", "tome_ratio")],
)
def test_what_cannot_be_compiled_is_refused(write_config, override, named):
    path = write_config(networks={"lora": NETWORKS["lora"]})
    with pytest.raises(ConfigError) as error:
        Trainer.from_config(load(path, "train.compile=true", override))
    assert "train.compile: " in str(error.value)
    assert named in str(error.value)


def test_without_a_compiler_it_is_said_before_anything_is_loaded(write_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load(write_config(networks={"lora": NETWORKS["lora"]}), "train.compile=true")
    with inductor_config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        faults = compilation_faults(config)
    assert faults == [
        "train.compile: needs a C++ compiler on this machine without a card; install g++, or "
        "take it out"
    ]
