"""Steps within the backward pass: the same weights, hardly a gradient in memory."""

import pytest
import torch
from operations import Operations

from modules.config import load
from modules.errors import ConfigError
from modules.fused_backward import treats_weights_alone
from modules.memory import RunMemory
from modules.memory_advice import with_fused_backward
from modules.run_parts import load_parts
from modules.trainer import Trainer
from modules.weight_update import FusedBackward

FULL = {"trainable": ["unet"]}
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
FUSED = {"fused_backward": True}


@pytest.fixture
def write_fused(write_config):
    def write(name="run", *, optimizer=FUSED, train=None, **sections):
        train = {"max_train_steps": 3, "max_grad_norm": 0.0, **(train or {})}
        sections.setdefault("model", FULL)
        return write_config(name, optimizer=optimizer, train=train, **sections)

    return write


def trained_weights(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    trainer.train()
    return [p.detach().clone() for group in trainer.groups for p in group.parameters], trainer


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimizer": {"module": "torch.optim.SGD", "args": {"momentum": 0.9}}},
        {"optimizer": {"module": "torch.optim.Adafactor"}},
        {"model": {"trainable": ["unet", "text_encoders"]}},
        {"model": {}, "networks": LORA},
        {"train": {"gradient_checkpointing": True}},
        {"train": {"mixed_precision": "bf16"}},
        {"ema": {"decay": 0.9}},
    ],
    ids=["adamw", "sgd", "adafactor", "text", "lora", "checkpointing", "bf16", "ema"],
)
def test_weights_are_those_of_a_step_behind_it(write_fused, sections):
    path = write_fused("plain", **sections | {"optimizer": sections.get("optimizer", {})})
    plain, _ = trained_weights(path)
    fused, trainer = trained_weights(path, "optimizer.fused_backward=true", "save.name=fused")
    assert isinstance(trainer._update, FusedBackward)
    assert plain
    assert all(torch.equal(one, other) for one, other in zip(plain, fused, strict=True))


def test_a_small_part_of_the_gradients_is_there_at_a_time(write_fused):
    trainer = Trainer.from_config(load(write_fused()))
    parameters = [p for group in trainer.groups for p in group.parameters]
    sizes = []

    def measure(_):
        sizes.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(measure)
    trainer.train_step(next(trainer.step_groups()))
    assert len(sizes) == len(parameters)
    largest = max(p.nbytes for p in parameters)
    assert max(sizes) <= sum(p.nbytes for p in parameters) / 16 + largest
    assert not any(p.grad is not None for p in parameters)


def test_the_optimizer_is_called_for_several_at_a_time(write_fused):
    trainer = Trainer.from_config(load(write_fused()))
    calls = []
    trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    trainer.train_step(next(trainer.step_groups()))
    assert 8 <= len(calls) <= 17


def test_the_norm_that_is_logged_is_that_of_all_gradients(write_fused):
    path = write_fused(optimizer={})
    norms = []
    for fused in ("false", "true"):
        trainer = Trainer.from_config(load(path, f"optimizer.fused_backward={fused}"))
        norms.append(trainer.train_step(next(trainer.step_groups()))["grad_norm"].item())
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("optimizer", [{}, {"args": {"foreach": True}}], ids=["fused", "foreach"])
def test_a_loss_that_is_not_finite_changes_nothing(write_fused, optimizer):
    trainer = Trainer.from_config(load(write_fused(optimizer=optimizer | FUSED)))
    group = next(trainer.step_groups())
    group[0].batch.latents.fill_(float("nan"))
    parameters = [p for each in trainer.groups for p in each.parameters]
    before = [p.detach().clone() for p in parameters]
    trainer.train_step(group)
    assert trainer.guard.is_bad
    assert trainer.guard.take_skipped() == 1
    assert all(torch.equal(p, was) for p, was in zip(parameters, before, strict=True))
    assert all(torch.isfinite(p).all() for p in parameters)


@pytest.mark.parametrize("optimizer", [{}, {"args": {"foreach": True}}], ids=["fused", "foreach"])
def test_a_gradient_that_is_not_finite_reaches_no_weight(write_fused, optimizer):
    trainer = Trainer.from_config(load(write_fused(optimizer=optimizer | FUSED)))
    middle = trainer.model.denoiser.mid_block.resnets[1].conv1
    middle.register_full_backward_hook(lambda *_: (torch.full_like(_[1][0], float("inf")),))
    first = trainer.model.denoiser.conv_in.weight
    last = trainer.model.denoiser.conv_out.weight
    before = first.detach().clone(), last.detach().clone()
    trainer.train_step(next(trainer.step_groups()))
    assert trainer.guard.is_bad
    assert torch.equal(first, before[0])
    assert not torch.equal(last, before[1])  # whose step was made before
    parameters = [p for each in trainer.groups for p in each.parameters]
    assert all(torch.isfinite(p).all() for p in parameters)


def test_resumed_it_goes_on_bit_by_bit(write_fused):
    path = write_fused(save={"state": True, "every_steps": 2}, train={"max_train_steps": 4})
    whole, _ = trained_weights(path, "save.name=whole")
    half, _ = trained_weights(path, "save.name=half", "train.max_train_steps=2")
    resumed, trainer = trained_weights(
        path,
        "save.name=half",
        "train.resume=auto",
        "train.accept_changes=[train.max_train_steps]",
    )
    assert trainer.step == 4
    assert not all(torch.equal(one, other) for one, other in zip(half, whole, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole, strict=True))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train": {"max_grad_norm": 1.0}}, "write train.max_grad_norm: 0"),
        ({"train": {"gradient_accumulation_steps": 2}}, "gradient_accumulation_steps: 1"),
        ({"optimizer": FUSED | {"module": "prodigyopt.Prodigy"}}, "for one weight than for all"),
    ],
)
def test_what_needs_all_gradients_is_refused(write_fused, changes, fault):
    with pytest.raises(ConfigError) as error:
        Trainer.from_config(load(write_fused(**changes)))
    assert fault in str(error.value)


def test_optimizers_that_look_at_all_weights_are_found():
    assert treats_weights_alone("torch.optim.AdamW", {"weight_decay": 0.1})
    assert treats_weights_alone("lion_pytorch.Lion", {})
    assert not treats_weights_alone("prodigyopt.Prodigy", {})
    assert not treats_weights_alone("schedulefree.AdamWScheduleFree", {})


def test_the_estimate_counts_no_gradients(write_fused):
    config = load(write_fused(optimizer={}))
    changed = with_fused_backward(config)
    plain, fused = (
        RunMemory(each, load_parts(each, weights=False)).estimate("no", checkpointing=False)
        for each in (config, changed)
    )
    assert fused.weights == plain.weights
    assert fused.gradients < plain.gradients / 5
    saved = plain.step.at(1) - fused.step.at(1)
    assert plain.trained / 4 < saved <= plain.trained  # the peak has moved to where few were
    assert with_fused_backward(changed) is None


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradients_divided_in_the_step_give_the_weights_of_clipped_ones(write_fused, precision):
    train = {"max_grad_norm": 0.01, "mixed_precision": precision}
    path = write_fused("foreach", optimizer={"args": {"foreach": True}}, train=train)
    clipped, _ = trained_weights(path)
    path = write_fused("fused", optimizer={"args": {"fused": True}}, train=train)
    with Operations() as operations:
        divided, trainer = trained_weights(path)
    assert trainer.guard.divides_itself
    assert operations.counts["_foreach_mul_"] == 0
    for one, other in zip(clipped, divided, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
