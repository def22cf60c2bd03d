"""What is said about an optimizer that does not fit, and one of a person's own."""

import logging
import sys

import pytest
import torch
from operations import Operations

from modules.config import load
from modules.errors import ConfigError, RunError
from modules.idle_settings import idle_settings
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4, "conv_rank": 2}}}


@pytest.fixture
def trainer_with(write_config):
    """A trainer with the optimizer at a path."""

    def make(path, args=None, *overrides):
        config = write_config(networks=LORA, optimizer={"module": path, "args": args or {}})
        return Trainer.from_config(load(config, *overrides))

    return make


def test_a_low_rate_for_one_that_finds_its_own_is_said(trainer_with, caplog):
    trainer_with("prodigyopt.Prodigy")
    told = {r.getMessage() for r in caplog.records if r.levelno == logging.WARNING}
    (said,) = (line for line in told if "latents" not in line)  # of which VAE is not known
    assert said == (
        "optimizer: prodigyopt.Prodigy finds its learning rate by itself and multiplies it with "
        "ours, 0.001; train.learning_rate: 1 is usual"
    )
    caplog.clear()
    trainer_with("prodigyopt.Prodigy", {}, "train.learning_rate=3")
    assert "multiplies it with ours, 3;" in caplog.text
    caplog.clear()
    trainer_with("prodigyopt.Prodigy", {}, "train.learning_rate=1")
    trainer_with("pytorch_optimizer.Lion")
    assert not [
        r for r in caplog.records if r.name != "modules.latent_origins" and r.levelno > logging.INFO
    ]


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("torch.optim.LBFGS", {}, "evaluates the loss several times in a step, which is not done"),
        ("schedulefree.AdamWScheduleFreeClosure", {}, "evaluates the loss several times"),
        ("pytorch_optimizer.SAM", {}, "wraps another optimizer, which is not done here; use ano"),
        ("pytorch_optimizer.Lookahead", {"k": 5}, "wraps another optimizer"),
        ("pytorch_optimizer.LOMO", {}, "wants a whole model in place of parameters; use another"),
        ("pytorch_optimizer.Lyon", {}, "has no 'Lyon'; did you mean 'Lion'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_loaded(
    write_config, tmp_path, path, args, message
):
    config = load(write_config(networks=LORA, optimizer={"module": path, "args": args}))
    for check in (True, False):
        with pytest.raises(ConfigError) as raised:
            Trainer.from_config(config, check=check)
        lines = str(raised.value).splitlines()
        assert len(lines) == 2
        assert lines[1].startswith("  optimizer.module: ")
        assert message in lines[1]
    assert not (tmp_path / "output").exists()


ADAFACTOR = "pytorch_optimizer.AdaFactor"


@pytest.mark.parametrize("args", [{}, {"relative_step": True}])
@pytest.mark.parametrize(
    ("schedule", "named"),
    [({"name": "cosine"}, "cosine"), ({"warmup_steps": 2}, "constant with warm-up")],
)
def test_a_schedule_beside_a_rate_of_its_own_is_refused(write_config, args, schedule, named):
    sections = {"optimizer": {"module": ADAFACTOR, "args": args}, "lr_scheduler": schedule}
    config = load(write_config(networks=LORA, **sections))
    with pytest.raises(ConfigError, match=r"optimizer\.args\.relative_step: ") as raised:
        Trainer.from_config(config, check=True)
    assert f"lr_scheduler ({named}) would have no effect" in str(raised.value)


def test_a_rate_beside_one_of_its_own_is_idle(write_config):
    sections = {"optimizer": {"module": ADAFACTOR}, "networks": LORA}
    (line,) = idle_settings(load(write_config(**sections)))
    assert line.startswith(f"train.learning_rate has no effect: {ADAFACTOR} follows one of its own")
    off = {"module": ADAFACTOR, "args": {"relative_step": False}}
    config = load(write_config(networks=LORA, optimizer=off, lr_scheduler={"name": "cosine"}))
    assert idle_settings(config) == []
    Trainer.from_config(config, check=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bitsandbytes.optim.SGD8bit", "bitsandbytes.optim.SGD8bit: SGD without momentum is not"),
        ("torch.optim.Muon", "Muon only supports 2D parameters"),
    ],
)
def test_what_an_optimizer_refuses_to_be_made_with(trainer_with, tmp_path, path, message):
    with pytest.raises(ConfigError, match=f"^optimizer: {message}"):
        trainer_with(path)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.optim.SparseAdam", "SparseAdam does not support dense gradients"),
        ("pytorch_optimizer.AliG", "AliG requires closure"),
        ("pytorch_optimizer.AdaHessian", "element 0 of tensors does not require grad"),
    ],
)
def test_what_an_optimizer_refuses_in_its_first_step(trainer_with, path, message):
    name = path.rpartition(".")[2]
    with pytest.raises(RunError, match=f"^optimizer: {name} can't make a step here: {message}"):
        trainer_with(path).train()


def test_a_failure_later_in_the_run_keeps_its_traceback(trainer_with):
    trainer = trainer_with("torch.optim.SGD")

    def fail(*_):
        if trainer.step == 1:  # in the second
            raise RuntimeError("a fault of the second step")

    trainer.optimizer.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^a fault of the second step$"):
        trainer.train()
    assert trainer.step == 1


@pytest.fixture
def my_optimizer(tmp_path, monkeypatch):
    code = """
import torch

class Plain(torch.optim.SGD):
    def __init__(self, weights, lr, *, beta: float):  # neither `params` nor a default
        super().__init__(weights, lr=lr, momentum=beta)

class Passing(torch.optim.AdamW):
    def __init__(self, params, **settings):
        super().__init__(params, **settings)
"""
    (tmp_path / "my_optimizer.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_optimizer", None)


@pytest.mark.usefixtures("my_optimizer")
def test_ones_own(trainer_with):
    trainer = trainer_with("my_optimizer.Plain", {"beta": 0.5})
    before = [p.detach().clone() for p in trainer.networks["lora"].parameters()]
    trainer.train()
    after = trainer.networks["lora"].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(
        ConfigError, match=r"optimizer\.args\.beta: is missing; my_optimizer\.Plain"
    ):
        trainer_with("my_optimizer.Plain")
    unknown = (
        r"^optimizer: my_optimizer\.Passing: .*argument 'amsgrat' \(my_optimizer\.py, line 10\)"
    )
    with pytest.raises(ConfigError, match=unknown):
        trainer_with("my_optimizer.Passing", {"amsgrat": True})


def test_the_fused_form_of_torchs_optimizers_is_the_default(write_config):
    def fused(*overrides: str) -> object:
        trainer = Trainer.from_config(load(write_config(networks=LORA), *overrides))
        return trainer.optimizer.param_groups[0].get("fused")

    assert fused() is True
    assert fused("optimizer.args={foreach: true}") is not True
    assert fused("optimizer.args={fused: false}") is False
    assert fused("optimizer.module=torch.optim.NAdam") is None  # has none


def test_a_run_s_optimizer_is_one_kernel_over_many_weights_by_default(write_config):
    lora = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
    trainer = Trainer.from_config(load(write_config(networks=lora)))
    group = next(trainer.step_groups())
    with Operations() as operations:
        trainer.train_step(group)
    assert trainer.optimizer.optimizer.defaults["fused"] is True
    assert operations.counts["_fused_adamw_"] == len(trainer.groups)
    assert len(trainer.groups[0].parameters) > 20
    one_by_one = ("addcdiv_", "lerp_", "addcmul_")
    assert not any(operations.counts[name] for name in one_by_one)
