"""What only CUDA can run: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from modules.config import load
from modules.trainer import Trainer

pytestmark = pytest.mark.gpu

LORA = {
    "lora": {
        "module": "networks.lora.LoRA",
        "args": {"rank": 4, "conv_rank": 2, "targets": ["unet", "text_encoders"]},
    }
}


@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
@pytest.mark.parametrize("trainable", [[], ["unet", "text_encoders"]], ids=["lora", "full"])
def test_a_run_on_cuda_trains(write_config, mixed_precision, attention, trainable):
    train = {"max_train_steps": 6, "batch_size": 2, "log_every": 1, "learning_rate": 1e-3}
    train |= {"mixed_precision": mixed_precision, "attention": attention}
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 2}
    config = load(
        write_config(
            model={"trainable": trainable},
            networks={} if trainable else LORA,
            train={**train, "gradient_checkpointing": True},
            sample=sample,
        )
    )
    trainer = Trainer.from_config(config)
    assert trainer is not None
    assert trainer.accelerator.device.type == "cuda"
    trained = [p for group in trainer.groups for p in group.parameters]
    before = [p.detach().clone() for p in trained]
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trained)
    moved = sum(not torch.equal(p, q) for p, q in zip(trained, before, strict=True))
    assert moved > 0.8 * len(trained)
    assert (trainer.directory / "before_after.png").is_file()


@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_everything_at_once_on_cuda(write_config, tmp_path, mixed_precision):
    import tiny

    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 6}, side_inputs=True)
    args = {"path": str(directory), "mask": True, "extras": {"control": "image", "pfg": "npz"}}
    networks = {
        **LORA,
        "pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12, "dropout": 0.5}},
        "controlnet": {"module": "networks.controlnet.ControlNet"},
        "frozen": {"module": "networks.controlnet.ControlNet", "train": False},
    }
    path = write_config(
        dataset={"args": args},
        networks=networks,
        ema={"decay": 0.9},
        train={
            "max_train_steps": 4,
            "batch_size": 4,
            "minibatch_repeat": 2,
            "tome_ratio": 0.5,
            "gradient_checkpointing": True,
            "stop_text_encoders_after": 2,
            "mixed_precision": mixed_precision,
        },
        sample={"width": 32, "height": 32, "num_inference_steps": 2, "num_images": 2},
    )
    trainer = Trainer.from_config(load(path))
    trainer.train()
    assert all(torch.isfinite(p).all() for group in trainer.groups for p in group.parameters)
    assert (trainer.directory / "run-controlnet-ema").is_dir()
    assert (trainer.directory / "before_after.png").is_file()


def test_merged_tokens_have_the_same_gradients_with_checkpointing_on_cuda():
    import tiny

    from modules.token_merging import merge_tokens

    gradients = []
    for checkpointing in (False, True):
        unet = tiny.make_sd().denoiser.cuda().train()
        merge_tokens(unet, 0.5)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(5)
        sample = torch.randn(2, 4, 8, 8, device="cuda")
        states = torch.randn(2, 16, 32, device="cuda")
        unet(
            sample, torch.tensor([500, 500], device="cuda"), states
        ).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-3, atol=1e-6), name


def test_a_line_tells_where_a_step_s_time_went_on_the_device(write_config):
    train = {"max_train_steps": 6, "batch_size": 2, "log_every": 3}
    trainer = Trainer.from_config(load(write_config(networks=LORA, train=train)))
    assert trainer is not None
    busy = torch.randn(4096, 4096, device="cuda")

    def work(*_args):  # queued at once by the host, long on the device
        for _ in range(50):
            torch.mm(busy, busy)

    trainer.optimizer.optimizer.register_step_pre_hook(work)
    trainer.train()
    for line in trainer.metrics.read()[1:]:
        parts = {name: line[f"seconds/{name}"] for name in ("data", "forward", "backward")}
        assert line["seconds/optimizer"] > max(parts.values())
        whole = sum(parts.values()) + line["seconds/optimizer"] + line["seconds/other"]
        assert whole == pytest.approx(line["seconds_per_step"], rel=0.05)
        assert 0 < line["memory/peak_gib"] < 70
        assert 0 < line["memory/used_share"] < 1
