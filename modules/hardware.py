"""What this machine can do, said before anything expensive starts."""

from __future__ import annotations

import logging
import platform
import shutil

import torch

logger = logging.getLogger(__name__)


def precision_fault(mixed_precision: str) -> str | None:
    """Why this machine can't compute in `mixed_precision`, or None."""
    if mixed_precision == "fp16" and not _has_accelerator():
        return "train.mixed_precision: fp16 needs a GPU and there is none here; use bf16 or no"
    if mixed_precision == "bf16" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() < (8, 0):
            return f"train.mixed_precision: bf16 is not supported by {name}; use fp16"
    return None


def warn_of_cpu_build() -> None:
    """Say so when an NVIDIA card is here but this torch was built without CUDA."""
    if torch.version.cuda is not None or shutil.which("nvidia-smi") is None or _has_accelerator():
        return
    logger.warning("%s", cpu_build_message(torch.__version__, platform.system()))


def cpu_build_message(version: str, system: str) -> str:
    """The warning and the pip line of the platform."""
    plain = version.partition("+")[0]
    line = f"pip install --force-reinstall torch=={plain}"
    if system == "Windows":  # PyPI's torch for Windows has no CUDA
        line += " --index-url https://download.pytorch.org/whl/cu130"
    return (
        f"an NVIDIA card is present but this torch ({version}) is a CPU build, so training will "
        f"run on the CPU; to use the card: {line}"
    )


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
