"""CUDA graphs of the denoiser: which batches get one, and what a replay must not change.

Without a card the graphs themselves can't be captured. What stands in for one computes the same
into memory of its own that each replay overwrites, as a graph does; tests/gpu has the real ones.
"""

import logging

import pytest
import torch

from modules.config import load
from modules.errors import ConfigError
from modules.graphed_denoiser import GraphedDenoiser, graph_faults
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}


class Replayed(torch.autograd.Function):
    """Passes whose output and gradients lie in the same memory each time."""

    @staticmethod
    def forward(ctx, memory, passes, count, *tensors):
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_(t.requires_grad) for t in tensors[:count]]
            output = passes(*inputs)
        ctx.memory, ctx.output, ctx.inputs, ctx.parameters = memory, output, inputs, tensors[count:]
        memory.setdefault("output", torch.empty_like(output)).copy_(output.detach())
        return memory["output"].detach()

    @staticmethod
    def backward(ctx, grad):
        wanted = [t for t in (*ctx.inputs, *ctx.parameters) if t.requires_grad]
        made = torch.autograd.grad(ctx.output, wanted, grad, allow_unused=True)
        by_id = dict(zip(map(id, wanted), made, strict=True))
        given = []
        for number, tensor in enumerate((*ctx.inputs, *ctx.parameters)):
            gradient = by_id.get(id(tensor))
            if gradient is not None:
                held = ctx.memory.setdefault(number, torch.empty_like(gradient))
                gradient = held.copy_(gradient).detach()
            given.append(gradient)
        return None, None, None, *given


class Captures:
    """Captures passes so; notes for which shapes."""

    def __init__(self, error=None):
        self.shapes, self.error, self.replays = [], error, 0

    def __call__(self, passes, samples):
        self.shapes.append(tuple(samples[0].shape))
        if self.error:
            raise self.error
        memory, parameters = {}, list(passes.parameters())

        def replay(*tensors):
            self.replays += 1
            return Replayed.apply(memory, passes, len(tensors), *tensors, *parameters)

        torch.rand(1)  # a capture draws numbers
        return replay


@pytest.fixture
def trainer(write_config):
    def make(*overrides, capture=None, most=8, **sections):
        sections = {"networks": LORA, **sections}
        trainer = Trainer.from_config(load(write_config(**sections), *overrides))
        if capture is not None:
            denoiser, networks = trainer.model.denoiser, list(trainer.networks.values())
            graphs = GraphedDenoiser(denoiser, networks, most=most, capture=capture)
            trainer.model.graphs = graphs
        return trainer

    return make


def weights_after(trainer, steps):
    groups = trainer.step_groups()
    for _ in range(steps):
        trainer.train_step(next(groups))
        trainer.step += 1
    return [p.detach().clone() for group in trainer.groups for p in group.parameters]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"gradient_accumulation_steps": 3}},
        {"networks": {}, "model": {"trainable": ["unet", "text_encoders"]}},
        {
            "networks": {
                "lora": {
                    "module": "networks.lora.LoRA",
                    "args": {"rank": 4, "targets": ["unet", "text_encoders"]},
                }
            }
        },
    ],
    ids=["lora", "accumulation", "full", "text"],
)
def test_weights_are_those_without_graphs(trainer, sections):
    plain = weights_after(trainer(**sections), 12)
    capture = Captures()
    graphed = weights_after(trainer(capture=capture, **sections), 12)
    assert capture.replays >= 3
    assert all(torch.equal(one, other) for one, other in zip(plain, graphed, strict=True))


def test_a_shape_has_a_graph_from_its_second_batch_on(trainer):
    capture = Captures()
    run = trainer(capture=capture)
    weights_after(run, 8)
    assert len(capture.shapes) == len(set(capture.shapes)) == run.model.graphs.count > 1


def test_no_more_graphs_than_wanted(trainer, caplog):
    capture = Captures()
    with caplog.at_level(logging.INFO):
        run = trainer(capture=capture, most=1)
        weights_after(run, 8)
    assert run.model.graphs.count == len(capture.shapes) == 1
    assert caplog.text.count("batches of further shapes are computed without") == 1


def test_what_cannot_be_captured_is_computed_as_ever(trainer, caplog):
    plain = weights_after(trainer(), 6)
    capture = Captures(error=RuntimeError("operation not permitted when stream is capturing"))
    with caplog.at_level(logging.WARNING):
        run = trainer(capture=capture)
        weights = weights_after(run, 6)
    assert all(torch.equal(one, other) for one, other in zip(plain, weights, strict=True))
    assert run.model.graphs.count == 0
    assert len(capture.shapes) == len(set(capture.shapes))  # none is tried twice
    assert "can't be captured (operation not permitted" in caplog.text


def test_images_and_losses_without_gradients_use_no_graph(trainer):
    capture = Captures()
    run = trainer(capture=capture)
    batch = next(run.step_groups())[0].batch
    with torch.no_grad():
        for _ in range(4):
            run.loss(batch)
    assert not capture.shapes


def test_without_a_card_it_is_refused(trainer):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match=r"train\.cuda_graphs: needs a card with CUDA"):
        trainer("train.cuda_graphs=4")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.gradient_checkpointing=true"], "train.gradient_checkpointing"),
        (["train.tome_ratio=0.5"], "train.tome_ratio"),
        (["model.offload_blocks=3"], "model.offload_blocks"),
        (["networks.lora.args.module_dropout=0.1"], "networks.lora.args.module_dropout"),
    ],
)
def test_what_changes_from_step_to_step_is_refused(write_config, monkeypatch, overrides, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load(write_config(networks=LORA), "train.cuda_graphs=4", *overrides)
    faults = graph_faults(config)
    assert len(faults) == 1
    assert named in faults[0]
