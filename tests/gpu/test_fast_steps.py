"""Compiled blocks and CUDA graphs on a card: the same steps, fewer launches."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from modules.config import load
from modules.trainer import Trainer

pytestmark = pytest.mark.gpu

NETWORKS = {
    name: {name: {"module": module, "args": {"rank": 4, **args}}}
    for name, module, args in (
        ("lora", "networks.lora.LoRA", {}),
        ("dropout", "networks.lora.LoRA", {"dropout": 0.3}),
        ("locon", "networks.lora.LoRA", {"conv_rank": 2}),
        ("loha", "networks.loha.LoHa", {}),
        ("lokr", "networks.lokr.LoKr", {}),
        ("full", "", {}),
    )
}


def run_steps(write_config, name, *overrides, steps=12, **train):
    model = {"trainable": ["unet"]} if name == "full" else {}
    networks = {} if name == "full" else NETWORKS[name]
    path = write_config(model=model, networks=networks, train={"batch_size": 2, **train})
    trainer = Trainer.from_config(load(path, *overrides))
    groups = trainer.step_groups()
    losses = []
    for _ in range(steps):
        losses.append(trainer.train_step(next(groups))["loss"])
        trainer.step += 1
    return trainer, torch.stack(losses).cpu()


def launches(trainer):
    group = next(trainer.step_groups())
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        trainer.train_step(group)
        torch.cuda.synchronize()
    names = "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch"
    return sum(e.count for e in profiler.key_averages() if e.key in names)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_by_graphs_are_those_without(write_config, name, precision):
    plain, expected = run_steps(write_config, name, mixed_precision=precision)
    graphed, losses = run_steps(
        write_config, name, "train.cuda_graphs=4", mixed_precision=precision
    )
    assert graphed.model.graphs.count > 0
    assert torch.allclose(losses, expected, rtol=0.02 if precision != "no" else 1e-3)
    assert launches(graphed) < 0.5 * launches(plain)


@pytest.mark.parametrize("batches", [2, 3])
def test_gradients_add_up_over_batches_of_one_graph(write_config, batches):
    accumulation = {"gradient_accumulation_steps": batches}
    _, expected = run_steps(write_config, "lora", **accumulation)
    graphed, losses = run_steps(write_config, "lora", "train.cuda_graphs=4", **accumulation)
    assert graphed.model.graphs.count > 0
    assert torch.allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["lora", "loha", "full"])
def test_compiled_blocks_launch_less(write_config, name):
    plain, expected = run_steps(write_config, name)
    compiled, losses = run_steps(write_config, name, "train.compile=true")
    assert torch.allclose(losses, expected, rtol=1e-3)
    assert launches(compiled) < 0.8 * launches(plain)


def test_compiled_blocks_go_into_graphs(write_config):
    _, expected = run_steps(write_config, "lora")
    run, losses = run_steps(write_config, "lora", "train.compile=true", "train.cuda_graphs=4")
    assert run.model.graphs.count > 0
    assert torch.allclose(losses, expected, rtol=1e-3)
