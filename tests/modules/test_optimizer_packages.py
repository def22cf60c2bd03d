"""Optimizers of other packages, trained with; each package is in requirements-dev.txt."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from modules.config import load
from modules.trainer import Trainer

ROOT = Path(main.__file__).parent
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4, "conv_rank": 2}}}
WIDE_LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 64}}}  # 64 x 64 = 4096


@pytest.fixture
def trainer_with(write_config):
    """A trainer of three steps with the optimizer at a path."""

    def make(path, args=None, *overrides, networks=LORA, **sections):
        config = write_config(
            networks=networks,
            optimizer={"module": path, "args": args or {}},
            lr_scheduler={"name": "linear"},
            train={"max_train_steps": 3, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1},
            **sections,
        )
        return Trainer.from_config(load(config, *overrides))

    return make


def parameters(trainer):
    return [p.detach().clone() for p in trainer.networks["lora"].parameters()]


def all_moved(trainer, start):
    """Whether every layer's change did: `lora_down` begins with gradients of next to nothing."""
    named = zip(trainer.networks["lora"].named_parameters(), start, strict=True)
    return all(not torch.equal(p, before) for (name, p), before in named if "lora_up" in name)


def states(trainer):
    """The optimizer's own tensors for each parameter, with a tensor's shape."""
    kept = trainer.optimizer.optimizer.state
    return [
        [value for value in kept[p].values() if isinstance(value, torch.Tensor) and value.ndim]
        for p in trainer.networks["lora"].parameters()
    ]


@pytest.mark.parametrize(
    ("path", "args"),
    [
        ("torch.optim.AdamW", {"betas": [0.9, 0.99], "weight_decay": 0.01}),
        ("torch.optim.SGD", {"momentum": 0.9}),
        ("torch.optim.Adafactor", {}),
        ("torch.optim.Adagrad", {"eps": 1e-8}),
        ("lion_pytorch.Lion", {"weight_decay": 0.01}),
        ("pytorch_optimizer.Lion", {"betas": [0.9, 0.99]}),
        ("pytorch_optimizer.CAME", {"weight_decay": 0.01}),
        ("pytorch_optimizer.SOAP", {"precondition_frequency": 2}),
        ("bitsandbytes.optim.AdamW", {}),
        ("bitsandbytes.optim.SGD", {"momentum": 0.9}),  # its learning rate has no default
        ("bitsandbytes.optim.PagedAdamW8bit", {}),  # on a CPU not paged
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_three_steps(trainer_with, path, args):
    trainer = trainer_with(path, args)
    start = parameters(trainer)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3]
    trainer.train()
    assert all_moved(trainer, start)
    assert all(torch.isfinite(p).all() for p in parameters(trainer))
    rates = [record["learning_rate/lora.unet"] for record in trainer.metrics.read()]
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.0])
    assert all(states(trainer))
    assert (trainer.directory / "run.safetensors").is_file()


def test_the_learning_rate_reaches_the_step(trainer_with):
    """Lion's first step is the sign of the gradient times the rate, of any size."""
    for path in ("lion_pytorch.Lion", "pytorch_optimizer.Lion", "bitsandbytes.optim.Lion"):
        trainer = trainer_with(path, {"weight_decay": 0.0}, "train.learning_rate=0.03125")
        start = parameters(trainer)
        trainer.train_step(next(trainer.step_groups()))
        steps = [(a - b).abs() for a, b in zip(start, parameters(trainer), strict=True)]
        sizes = torch.cat([step.flatten() for step in steps])
        assert sizes.max().item() == pytest.approx(0.03125, rel=1e-5), path
        assert ((sizes < 1e-6) | ((sizes - 0.03125).abs() < 1e-6)).all()


@pytest.mark.parametrize(
    ("path", "kept"), [("bitsandbytes.optim.AdamW8bit", 2), ("bitsandbytes.optim.Lion8bit", 1)]
)
def test_eight_bit_states_of_large_tensors(trainer_with, path, kept):
    trainer = trainer_with(path, networks=WIDE_LORA)
    start = parameters(trainer)
    trainer.train()
    assert all_moved(trainer, start)
    large, small = [], []
    state = trainer.optimizer.optimizer.state
    for parameter in trainer.networks["lora"].parameters():
        group = large if parameter.numel() >= 4096 else small
        group.append([state[parameter][f"state{n + 1}"] for n in range(kept)])
    assert large
    assert small
    for found, dtype in ((large, torch.uint8), (small, torch.float32)):
        assert {tensor.dtype for tensors in found for tensor in tensors} == {dtype}
        assert all(tensor.any() for tensors in found for tensor in tensors)


def test_schedule_free_ones_of_another_package_switch_their_weights(trainer_with):
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 1}
    trainer = trainer_with(
        "pytorch_optimizer.ScheduleFreeAdamW", {}, "train.learning_rate=0.01", sample=sample
    )
    trainer.train()
    saved = load_file(trainer.directory / "run.safetensors")
    layers = trainer.networks["lora"].layers
    training = {key: value.detach().clone() for key, value in layers.state_dict().items()}
    trainer.optimizer.eval()
    usable = layers.state_dict()
    assert max((usable[key] - training[key]).abs().max() for key in saved) > 1e-4
    for name in layers:  # a file has one alpha for all; what that takes away `up` is given
        down, up, alpha = (
            f"{name}.{key}" for key in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        assert torch.allclose(usable[down], saved[down], atol=1e-6)
        assert torch.allclose(usable[up] * usable[alpha], saved[up] * saved[alpha], atol=1e-6)


def test_importing_bitsandbytes_adds_nothing_to_the_log():
    """In a process of its own, since a package speaks up once, when it is first imported."""
    code = (
        "from modules.console import quiet_libraries\n"
        "quiet_libraries()\n"
        "import bitsandbytes.optim, lion_pytorch, prodigyopt, pytorch_optimizer, schedulefree\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
