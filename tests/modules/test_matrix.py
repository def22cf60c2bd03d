"""Every network with every objective and option: gradients where they belong, files read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from families import NETWORKS
from probes import perturb

from modules.config import load
from modules.trainer import Trainer

VARIANTS: dict[str, dict] = {
    **NETWORKS,
    "dora_output": {"module": "networks.loha.LoHa", "args": {"rank": 2, "dora": "output"}},
    "options": {
        "module": "networks.lora.LoRA",
        "args": {
            **{"rank": 2, "conv_rank": 2, "blocks": {"unet.up_blocks": {"rank": 4, "alpha": 2}}},
            **{"rank_stabilized": True, "lora_plus_ratio": 4, "max_norm": 1},
            **{"dropout": 0.1, "rank_dropout": 0.1},  # a dropped module would get zeros
            "targets": ["unet", "text_encoders"],
        },
    },
}
OBJECTIVES = {
    "epsilon": {"module": "modules.objectives.Epsilon"},
    "velocity": {
        "module": "modules.objectives.VPrediction",
        "args": {"zero_terminal_snr": True, "min_snr_gamma": 5},
    },
    "l1": {"args": {"loss": "l1", "noise_offset": 0.1, "input_perturbation": 0.1}},
    "huber": {"args": {"loss": "huber", "pyramid_noise": 0.3, "debiased": True}},
}
OPTIONS = {
    "plain": {},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "bf16": {"train": {"mixed_precision": "bf16"}},
    "masked_repeats": {
        "train": {"minibatch_repeat": 2, "batch_size": 4, "tome_ratio": 0.5},
        "dataset": {"mask": True},
    },
    "averaged": {"ema": {"decay": 0.9}, "train": {"gradient_accumulation_steps": 2}},
    "small_card": {
        "model": {"quantize": "int8", "offload_blocks": 8},
        "train": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    },
    "class_images": {"prior": {"loss_weight": 0.5}},
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """A dataset with guides, masks and features."""
    directory = tmp_path_factory.mktemp("matrix") / "data"
    captions = ("a red <thing>", "a blue dog")
    return tiny.save_dataset(directory, {(32, 32): 6}, side_inputs=True, captions=captions)


def assemble(path: Path) -> Trainer:
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    return trainer


COMBINATIONS = [
    pytest.param(name, objective, option, marks=[pytest.mark.slow] if is_rare else [])
    for name in VARIANTS
    for objective in OBJECTIVES
    for option in OPTIONS
    for is_rare in [objective != "epsilon" and option != "plain"]
]


@pytest.mark.parametrize(("name", "objective", "option"), COMBINATIONS)
def test_gradients_and_files(write_config, everything, name, objective, option):
    sections = {key: dict(value) for key, value in OPTIONS[option].items()}
    args = {"path": str(everything), "extras": {"control": "image", "pfg": "npz"}}
    args |= sections.pop("dataset", {})
    sections |= {"dataset": {"args": args}, "objective": OBJECTIVES[objective]}
    if "prior" in sections:
        sections["prior"]["args"] = args
    trainer = assemble(write_config("first", networks={name: VARIANTS[name]}, **sections))
    network = trainer.networks[name]
    perturb(network, scale=0.05)
    for part in next(trainer.step_groups()):
        trainer.accelerator.backward(trainer._loss(part.batch))
    trained = [p for group in trainer.groups for p in group.parameters]
    assert trained
    named = {id(parameter): path for path, parameter in network.named_parameters()}
    assert [named[id(p)] for p in trained if p.grad is None or not p.grad.any()] == []
    own = {id(parameter) for parameter in trained}
    others = [p for module in trainer.model.components().values() for p in module.parameters()]
    assert all(p.grad is None for p in others if id(p) not in own)

    trainer.saver.save_if_due(trainer, last=True)
    written = sorted(
        path
        for path in trainer.directory.iterdir()
        if path.name.startswith("first") and "-ema" not in path.name
    )
    batch = next(iter(trainer.source.loader)).to(trainer.accelerator.device)
    section = {**VARIANTS[name], "resume": str(written[0])}
    second = assemble(write_config("second", networks={name: section}, **sections))
    losses = []
    for one in (trainer, second):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(one._loss(batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    return tiny.save_sd(tmp_path_factory.mktemp("sdxl") / "model", make=tiny.make_sdxl)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_with_several_networks_for_sdxl(write_config, everything, sdxl, option):
    sections = {key: dict(value) for key, value in OPTIONS[option].items()}
    args = {"path": str(everything), "extras": {"control": "image", "pfg": "npz"}}
    if "prior" in sections:
        sections["prior"]["args"] = dict(args)
    args |= sections.pop("dataset", {})
    chosen = ("lora", "controlnet", "pfg", "textual_inversion", "hypernetwork")
    sections |= {
        "model": {**sections.get("model", {}), "path": str(sdxl)},
        "dataset": {"args": args},
        "networks": {name: NETWORKS[name] for name in chosen},
        "sample": {"num_images": 2, "num_inference_steps": 2},
    }
    trainer = assemble(write_config(**sections))
    before = [p.detach().clone() for group in trainer.groups for p in group.parameters]
    trainer.train()
    after = [p for group in trainer.groups for p in group.parameters]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved > 0.7 * len(after)
