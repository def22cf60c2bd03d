"""The estimate against what CUDA has allocated: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from modules.config import load
from modules.memory import RunMemory
from modules.run_parts import load_parts
from modules.trainer import Trainer

pytestmark = pytest.mark.gpu

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("networks", [LORA, {}], ids=["lora", "full"])
def test_a_run_takes_what_is_estimated(write_config, tmp_path, networks, precision, checkpointing):
    import tiny

    data = tiny.save_dataset(tmp_path / "large", {(256, 256): 8})
    train = {
        "mixed_precision": precision,
        "gradient_checkpointing": checkpointing,
        "batch_size": 8,
        "max_train_steps": 3,
    }
    path = write_config(
        model={} if networks else {"trainable": ["unet"]},
        dataset={"args": {"path": str(data)}},
        networks=networks,
        train=train,
    )
    config = load(path)
    memory = RunMemory(config, load_parts(config, weights=False))
    estimate = memory.estimate(precision, checkpointing=checkpointing)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    trainer = Trainer.from_config(config)
    assert trainer is not None
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    measured = torch.cuda.max_memory_allocated() - before
    workspace = 40 * 2**20  # cuBLAS's, of up to so much
    expected = max(estimate.phases(8).values())
    assert 0.8 * expected < measured < 1.2 * expected + workspace
