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
