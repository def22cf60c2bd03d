"""The estimate against what real tensors take on the CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from modules.batch import collate
from modules.config import load
from modules.engine import prepare_modules
from modules.live_memory import LiveMemory, bytes_of, stored
from modules.memory import RunMemory, largest_sample
from modules.memory_trace import stand_in, tensors_of, trained_of
from modules.meta_autocast import FULL, FULL_OUTPUT, LOWER, MetaAutocast
from modules.optimizer_memory import measure_optimizer
from modules.run_parts import load_parts
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
FULL_TRAINING = {"trainable": ["unet", "text_encoders"]}


def real_peak(config, batch_size):
    """The peak of a real step on the CPU, without and with the weights, counted by storages."""
    parts = load_parts(config, weights=True)
    train = config.train
    prepare_modules(
        parts.model,
        parts.networks,
        device=torch.device("cpu"),
        mixed_precision=train.mixed_precision,
        gradient_checkpointing=train.gradient_checkpointing,
        quantize=config.model.quantize,
    )
    modules = [*parts.model.components().values(), *parts.networks.values(), parts.model.vae]
    run = stand_in(parts.model, parts.networks, parts.objective, train.minibatch_repeat)
    sample = largest_sample([parts.dataset])
    batch = collate([sample] * batch_size)
    dtype = {"no": None, "bf16": torch.bfloat16}[train.mixed_precision]
    with LiveMemory(images=10**9) as live, MetaAutocast(dtype) as autocast:
        live.ignore(tensor for module in modules for tensor in stored(module))
        live.add(tensors_of(batch))
        loss = Trainer.loss(run, batch)
        autocast.forget()
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
    weights = bytes_of(t for module in modules for t in stored(module))
    return live.peak.at(1), weights, trained_of(modules)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("networks", [LORA, {}], ids=["lora", "full"])
def test_a_step_takes_what_is_estimated(
    write_config, networks, precision, checkpointing, batch_size
):
    train = {
        "mixed_precision": precision,
        "gradient_checkpointing": checkpointing,
        "batch_size": batch_size,
    }
    model = {} if networks else FULL_TRAINING
    config = load(write_config(model=model, networks=networks, train=train))
    memory = RunMemory(config, load_parts(config, weights=False))
    estimate = memory.estimate(precision, checkpointing=checkpointing)
    step, weights, trained = real_peak(config, batch_size)
    assert estimate.weights == pytest.approx(weights, rel=0.002)
    assert estimate.gradients == bytes_of(trained)
    assert estimate.step.at(batch_size) == pytest.approx(step, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["int8", "fp8", "nf4"])
def test_over_a_stored_base_too(write_config, name, checkpointing):
    train = {"mixed_precision": "bf16", "gradient_checkpointing": checkpointing, "batch_size": 3}
    path = write_config(networks=LORA, train=train)
    plain, config = load(path), load(path, f"model.quantize={name}")
    estimates = [
        RunMemory(each, load_parts(each, weights=False)).estimate(
            "bf16", checkpointing=checkpointing
        )
        for each in (plain, config)
    ]
    step, weights, _ = real_peak(config, 3)
    assert estimates[1].weights == pytest.approx(weights, rel=0.002)
    assert estimates[1].weights < estimates[0].weights
    if name == "int8":  # as the advice counts it
        assert estimates[0].weights - estimates[0].rounding == estimates[1].weights
    assert estimates[1].rounding == 0
    assert estimates[1].step.at(3) == pytest.approx(step, rel=0.05)


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.Adafactor",
        "prodigyopt.Prodigy",
        "lion_pytorch.Lion",
        "schedulefree.AdamWScheduleFree",
    ],
)
def test_an_optimizer_keeps_what_is_estimated(path):
    shapes = [(32, 16), (32,), (8, 4, 3, 3)]
    bare = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    state, _ = measure_optimizer(path, {}, bare)

    from modules.optimizer import ParameterGroup
    from modules.optimizer_class import make_optimizer

    real = [torch.nn.Parameter(torch.rand(shape)) for shape in shapes]
    optimizer = make_optimizer(path, {}, [ParameterGroup("all", real, 1e-3)])
    if hasattr(optimizer, "train"):
        optimizer.train()
    for parameter in real:
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    kept = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    assert state == pytest.approx(sum(t.nbytes for t in kept), abs=16 * len(shapes))


def test_eight_bit_states_are_about_a_quarter():
    parameter = torch.nn.Parameter(torch.empty(1024, 1024, device="meta"))
    full, _ = measure_optimizer("torch.optim.AdamW", {}, [parameter])
    small, _ = measure_optimizer("bitsandbytes.optim.AdamW8bit", {}, [parameter])
    assert full == pytest.approx(8 * 2**20, rel=0.001)
    assert small == 2 * (2**20 + 4 * 2**12)


def test_autocast_s_lists_are_torch_s():
    from pathlib import Path

    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text(encoding="utf-8")

    def known(start, end):
        return text[text.index(start) : text.index(end)]

    lower = known("AT_FORALL_LOWER_PRECISION_FP", "AT_FORALL_FP32(")
    full = known("AT_FORALL_FP32(", "AT_FORALL_FP32_SET_OPT_DTYPE(")
    output = known("AT_FORALL_FP32_SET_OPT_DTYPE(", "AT_FORALL_DIFFERENT_REDISPATCH")
    other_names = {"interpolate": "upsample_nearest2d", "multi_dot": "linalg_multi_dot"}
    for names, part in ((LOWER, lower), (FULL, full + text), (FULL_OUTPUT, output)):
        for name in names:
            assert f"({other_names.get(name, name)}" in part or f"{name})" in part, name


def test_what_can_t_run_without_values_is_said_not_raised(write_config, monkeypatch):
    from modules import memory_table

    config = load(write_config(networks=LORA))
    reload = partial(load_parts, weights=False)
    parts = reload(config)

    def needs_values(*_args):
        return torch.zeros((), device="meta").item()

    monkeypatch.setattr(parts.objective, "add_noise", needs_values)
    (line,) = memory_table.memory_lines(config, parts, reload)
    assert line.startswith("can't be estimated (")


def test_the_table_marks_the_run_and_advice_is_what_applies(write_config):
    from modules.memory_table import memory_lines

    train = {"batch_size": 4, "mixed_precision": "bf16"}
    config = load(write_config(networks=LORA, train=train))
    reload = partial(load_parts, weights=False)
    lines = memory_lines(config, reload(config), reload)
    assert lines[0].startswith("about 0.6 GiB of a card at most")
    table = {line[:21].strip(): line for line in lines[3:9]}
    assert list(table) == [
        "no",
        "bf16",
        "fp16",
        "no, checkpointing",
        "bf16, checkpointing",
        "fp16, checkpointing",
    ]
    assert [name for name, line in table.items() if "[" in line] == ["bf16"]
    assert lines[9:] == []  # a tiny model: nothing saves so much that it is worth saying


def test_everything_at_once_is_estimated(write_config, tmp_path):
    import tiny

    from modules.memory_table import memory_lines

    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 6}, side_inputs=True)
    args = {"path": str(directory), "mask": True, "extras": {"control": "image", "pfg": "npz"}}
    networks = {
        "lora": {**LORA["lora"], "args": {"rank": 4, "targets": ["unet", "text_encoders"]}},
        "pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12}},
        "controlnet": {"module": "networks.controlnet.ControlNet"},
        "frozen": {"module": "networks.controlnet.ControlNet", "train": False},
    }
    path = write_config(
        dataset={"args": args},
        networks=networks,
        ema={"decay": 0.9},
        train={"batch_size": 4, "minibatch_repeat": 2, "tome_ratio": 0.5},
        sample={"width": 32, "height": 32, "num_images": 2},
    )
    config = load(path)
    reload = partial(load_parts, weights=False)
    lines = memory_lines(config, reload(config), reload)
    assert "can't" not in lines[0]


def test_images_that_are_not_cached_take_more(write_config):
    config = load(write_config(networks=LORA))
    images = replace(config.dataset, module="modules.dataset.ImageDataset")
    cached = RunMemory(config, load_parts(config, weights=False))
    other = replace(config, dataset=images)
    encoded = RunMemory(other, load_parts(other, weights=False))
    assert encoded.could_cache_latents
    assert not cached.could_cache_latents
    peaks = [m.estimate("no", checkpointing=True).step.at(8) for m in (cached, encoded)]
    other_cached = RunMemory(other, load_parts(other, weights=False))
    other_cached.use_cached_latents()
    assert other_cached.sample.latents.shape[0] == 8  # moments, as preprocess/latent.py makes them
    assert other_cached.sample.latents.shape[1:] == cached.sample.latents.shape[1:]
    assert peaks[0] < peaks[1]
