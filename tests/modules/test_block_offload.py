"""Blocks whose weights rest elsewhere: what is on the device, how often it comes, what results."""

from __future__ import annotations

import re

import pytest
import tiny
import torch
from interrupted_runs import LORA, assemble, interrupted
from real_folders import save_configs
from safetensors.torch import load_file

from modules import models
from modules.block_offload import find_blocks, offload_blocks, spared_bytes
from modules.config import load
from modules.errors import ConfigError
from modules.live_memory import bytes_of, stored
from modules.memory import RunMemory
from modules.mixed_precision import checkpoint
from modules.models.lean_blocks import keep_less
from modules.models.quantized import quantize_frozen
from modules.run_parts import load_parts
from networks.lora import LoRA

CPU = torch.device("cpu")
ALL = 12  # blocks of the tiny UNet
SAMPLE = {"prompts": ["a red cat"], "width": 32, "height": 32, "num_inference_steps": 2}
DORA = {"module": "networks.lora.LoRA", "args": {"rank": 2, "dora": "output", "conv_rank": 2}}


class Passes:
    """A UNet with a LoRA, and what its blocks have on the device when one of them begins."""

    def __init__(self, *, count: int, checkpointing: bool = False, quantize: str | None = None):
        model = tiny.make_sd(sd2=True)
        self.unet = model.denoiser.requires_grad_(False)
        self.network = LoRA(rank=2, conv_rank=2)
        self.network.attach(model)
        generator = torch.manual_seed(3)
        for parameter in self.network.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        if quantize:
            quantize_frozen(self.unet, quantize, device=CPU)
        self.unet.double(), self.network.double()
        self.offload = offload_blocks(self.unet, count, device=CPU) if count else None
        keep_less(self.unet)
        if checkpointing:
            self.unet.enable_gradient_checkpointing(checkpoint)
            self.unet.train()
        self.seen: list[int] = []
        for block in find_blocks(self.unet).values() if count else ():
            block.register_forward_pre_hook(self.note)

    def note(self, *_: object) -> None:
        self.seen.append(self.offload.resident_bytes)

    def forward(self) -> torch.Tensor:
        generator = torch.manual_seed(1)
        x = torch.randn(2, 4, 8, 8, generator=generator).double()
        states = torch.randn(2, 16, 32, generator=generator).double()
        return self.unet(x, torch.tensor([3, 500]), encoder_hidden_states=states).sample

    def step(self) -> list[torch.Tensor]:
        self.network.zero_grad()
        self.forward().square().mean().backward()
        return [parameter.grad for parameter in self.network.parameters()]


def assert_near(wanted: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """Check that gradients are the same but for the order in which they are added up."""
    for one, other in zip(wanted, found, strict=True):
        assert (one - other).norm() < 1e-12 * one.norm()


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [3, ALL])
def test_gradients_are_those_without_it(count, checkpointing, quantize):
    options = {"checkpointing": checkpointing, "quantize": quantize}
    whole, resting = Passes(count=0, **options), Passes(count=count, **options)
    with torch.no_grad():
        assert torch.equal(whole.forward(), resting.forward())
    for _ in range(3):  # the order of the blocks is known from the second time on
        assert_near(whole.step(), resting.step())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_blocks_at_most_are_on_the_device(checkpointing):
    passes = Passes(count=ALL, checkpointing=checkpointing)
    sizes = sorted(each.size for each in passes.offload.blocks.values())
    for _ in range(3):
        passes.step()
        with torch.no_grad():
            passes.forward()
    again = ALL - 1 if checkpointing else 0  # the middle's first has no checkpoint
    assert len(passes.seen) == 3 * (2 * ALL + again)
    assert min(passes.seen) >= sizes[0]
    assert max(passes.seen) <= sizes[-1] + sizes[-2]
    assert passes.offload.resident_bytes <= sizes[-1] + sizes[-2]
    empty = [b for b in passes.offload.blocks.values() if not b.resident_bytes]
    assert len(empty) >= ALL - 2
    assert {b._room.untyped_storage().data_ptr() for b in empty} == {0}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_block_comes_once_for_each_pass(checkpointing):
    passes = Passes(count=ALL, checkpointing=checkpointing)
    passes.step()
    passes.step()
    before = passes.offload.transfers
    passes.step()
    # The first block has come with the step before, the last one stays between the passes.
    assert passes.offload.transfers - before == 2 * ALL - 2


def test_blocks_may_be_compiled():
    whole, resting = (Passes(count=count, quantize="int8") for count in (0, ALL))
    for block in list(find_blocks(resting.unet).values())[1:3]:
        block.compile(backend="aot_eager")
    wanted = whole.step()
    for _ in range(3):
        assert_near(wanted, resting.step())


def test_weights_at_rest_can_be_read_and_a_move_passes_them_by():
    passes = Passes(count=ALL)
    plain = tiny.make_sd(sd2=True).denoiser.double().state_dict()
    passes.step()
    held = passes.unet.state_dict()
    assert held.keys() == plain.keys()
    assert all(torch.equal(held[key], value) for key, value in plain.items())
    passes.unet.to("meta")
    blocks = {id(p) for b in find_blocks(passes.unet).values() for p in b.parameters()}
    assert len(blocks) > 100
    assert all(p.is_meta != (id(p) in blocks) for p in passes.unet.parameters())


def test_a_pass_that_fails_leaves_the_next_one_whole():
    whole, passes = Passes(count=0), Passes(count=ALL)
    passes.step()
    passes.network.layers["lora_unet_mid_block_resnets_0_conv1"].register_forward_hook(_failing)
    loss = passes.forward().square().mean()
    with pytest.raises(RuntimeError, match="meanwhile"):
        loss.backward()
    assert passes.offload._open
    passes.network.layers["lora_unet_mid_block_resnets_0_conv1"]._forward_hooks.clear()
    assert_near(whole.step(), passes.step())


def _failing(_layer: object, _args: object, output: torch.Tensor) -> None:
    """Let the backward pass fail where it comes to this output."""

    def fail(_grad: torch.Tensor) -> None:
        raise RuntimeError("meanwhile")

    output.register_hook(fail)


@pytest.mark.parametrize("network", [LORA["lora"], DORA], ids=["lora", "dora"])
def test_a_run_with_all_that_happens_beside_training(write_config, network, caplog):
    path = write_config(
        networks={"own": network},
        objective={"module": "plugged_in.Deterministic"},
        train={"rehearse": True, "gradient_checkpointing": True, "max_train_steps": 3},
        sample=SAMPLE,
        validation={"split": 0.25},
    )
    caplog.set_level("INFO")
    found = {}
    for count in (0, 8):
        trainer = assemble(path, f"model.offload_blocks={count}", f"save.name={count}")
        trainer.train()
        found[count] = load_file(trainer.directory / f"{count}.safetensors")
    assert trainer.model.offload.transfers > 50
    assert all(torch.allclose(found[0][key], found[8][key], atol=1e-4) for key in found[0])
    assert re.search(r"model.offload_blocks: 8 blocks, [\d.]+ MiB", caplog.text)
    assert "has no use without a card" in caplog.text


def test_a_resumed_run_is_the_whole_run(write_config):
    model = {"quantize": "int8", "offload_blocks": 6}
    path = write_config(model=model, networks=LORA, train={"max_train_steps": 4})
    whole = assemble(path, "save.name=whole")
    whole.train()
    begun = interrupted(path, 2)
    resumed = assemble(path, f"train.resume={begun.directory}")
    resumed.train()
    ended, wanted = (load_file(t.directory / f"{t.name}.safetensors") for t in (resumed, whole))
    assert all(torch.equal(ended[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("quantize", ["null", "int8"])
def test_the_estimate_counts_what_is_on_the_device(write_config, quantize):
    path = write_config(networks=LORA, model={"offload_blocks": 9})
    config = load(path, f"model.quantize={quantize}")
    memory = RunMemory(config, load_parts(config, weights=False))
    estimate = memory.estimate("no", checkpointing=False)
    trainer = assemble(path, f"model.quantize={quantize}")
    model, offload, seen = trainer.model, trainer.model.offload, []
    for resting in offload.blocks.values():
        resting.block.register_forward_pre_hook(lambda *_: seen.append(offload.resident_bytes))
    trainer.train()
    blocks = [r.block for r in offload.blocks.values()]
    modules = [*model.components().values(), model.vae, *trainer.networks.values()]
    resting = {id(t) for block in blocks for t in stored(block)}
    others = bytes_of(t for m in modules for t in stored(m) if id(t) not in resting)
    assert others < estimate.weights - max(seen) / 2
    assert others + max(seen) == pytest.approx(estimate.weights, rel=0.02)
    assert others + max(seen) <= estimate.weights


def test_the_advice_counts_all_blocks(write_config):
    path = write_config(networks=LORA)
    found = []
    for count in (0, 4, ALL):
        config = load(path, f"model.offload_blocks={count}")
        memory = RunMemory(config, load_parts(config, weights=False))
        assert memory.blocks == ALL
        found.append(memory.estimate("bf16", checkpointing=False))
    assert found[0].weights > found[1].weights > found[2].weights
    assert {each.weights - each.resting for each in found} == {found[2].weights}


@pytest.mark.parametrize(("name", "count"), [("sd1", 38), ("sdxl", 87)])
def test_published_models_have_as_many_blocks_as_the_page_says(tmp_path, name, count):
    model = models.load(str(save_configs(name, tmp_path / name)), weights=False)
    assert len(find_blocks(model.denoiser)) == count
    spared = spared_bytes(model.denoiser, None)
    whole = sum(parameter.nbytes for parameter in model.denoiser.parameters())
    assert 0.75 * whole < spared < whole


def test_more_blocks_than_there_are(write_config):
    path = write_config(networks=LORA, model={"offload_blocks": 99})
    unet = tiny.make_sd().denoiser
    wanted = f"model.offload_blocks: 99 blocks, but this UNet2DConditionModel has {ALL}"
    with pytest.raises(ConfigError, match=wanted):
        assemble(path)
    assert spared_bytes(unet, 2) == 0
    assert spared_bytes(unet, ALL) > spared_bytes(unet, 4) > 0


def test_nothing_of_the_base_is_trained_beside_it(write_config):
    path = write_config(model={"offload_blocks": 3, "trainable": ["unet"]})
    with pytest.raises(ConfigError, match=r"model.offload_blocks.*model.trainable names unet"):
        load(path)
    assert load(path, "model.offload_blocks=0").model.trainable == ["unet"]
