"""Two thousand steps with saves and samples: memory and open files stay as they are."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from pathlib import Path

import pytest

from modules.config import load
from modules.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS = 2000


def resident() -> int:
    """Bytes of memory that this process holds, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks Linux and glibc for numbers")
def test_memory_and_open_files_are_constant(write_config):
    trainer = Trainer.from_config(
        load(
            write_config(
                networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}},
                ema={"decay": 0.99},
                train={"max_train_steps": STEPS, "log_every": 10},
                save={"every_steps": 100, "keep_last": 2},
                sample={
                    "num_images": 1,
                    "width": 32,
                    "height": 32,
                    "num_inference_steps": 1,
                    "every_steps": 100,
                },
                validation={"split": 0.3, "every_steps": 100, "keep_best": True},
                loggers={"tensorboard": None},
            )
        )
    )
    assert trainer is not None
    measured: list[tuple[int, int]] = []
    make = trainer.train_step

    def train_step(group):
        if trainer.step % 400 == 399:
            measured.append((resident(), open_files()))
        return make(group)

    trainer.train_step = train_step  # type: ignore[method-assign]
    trainer.train()
    assert len(measured) == STEPS // 400
    memory, files = zip(*measured[1:], strict=True)  # the first has caches still to fill
    assert max(files) == min(files)
    assert max(memory) - memory[0] < 8 * 2**20
    print([round(each / 2**20) for each in memory], files)
