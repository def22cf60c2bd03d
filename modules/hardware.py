"""What this machine can do, said before anything expensive starts."""

from __future__ import annotations

import logging
import platform
import re
import shutil
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)

_INDEX = "https://download.pytorch.org/whl/"
_FIRST_OF_CUDA_13 = (7, 5)  # Turing; older cards have builds of CUDA 12.6 up to torch 2.14


def precision_fault(mixed_precision: str) -> str | None:
    """Why this machine can't compute in `mixed_precision`, or None."""
    if mixed_precision == "fp16" and not _has_accelerator():
        return "train.mixed_precision: fp16 needs a GPU and there is none here; use bf16 or no"
    if mixed_precision == "bf16" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() < (8, 0):
            return f"train.mixed_precision: bf16 is not supported by {name}; use fp16"
    return None


def warn_of_unfit_build() -> None:
    """Say so when an NVIDIA card is here but this torch can't compute on it."""
    for fault in build_faults():
        logger.warning("%s", fault)


def build_faults() -> list[str]:
    """Why this torch can't compute on an NVIDIA card that is here; each ends with a pip line."""
    if torch.version.cuda is None:
        unused = shutil.which("nvidia-smi") is not None and not _has_accelerator()
        return [cpu_build_message(torch.__version__, platform.system())] if unused else []
    if not torch.cuda.is_available():
        return []
    kernels = torch.cuda.get_arch_list()
    cards = [
        (torch.cuda.get_device_name(n), torch.cuda.get_device_capability(n))
        for n in range(torch.cuda.device_count())
    ]
    return [
        kernel_message(name, capability, kernels, torch.__version__)
        for name, capability in dict(cards).items()
        if not has_kernels(capability, kernels)
    ]


def has_kernels(capability: tuple[int, int], kernels: Sequence[str]) -> bool:
    """Whether a card of this compute capability can run one of a build's kernels.

    `kernels` is torch's list: sm_86 runs on cards of 8.6 and later ones of 8, sm_90a on 9.0 alone,
    sm_100f on later ones of 10; compute_90 is translated for any later card (CUDA's compatibility
    rules).
    """
    for kernel in kernels:
        if not (found := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", kernel)):
            continue
        built = int(found[2]), int(found[3])
        if found[4] == "a":
            fits = capability == built
        elif found[1] == "compute" and not found[4]:
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability >= built
        if fits:
            return True
    return False


def kernel_message(
    name: str, capability: tuple[int, int], kernels: Sequence[str], version: str
) -> str:
    """What the error "no kernel image is available" means, and the pip line."""
    line = "pip install --force-reinstall "
    if capability < _FIRST_OF_CUDA_13:  # only builds of CUDA 12.6 have its kernels
        line += f"torch=={version.partition('+')[0]} --index-url {_INDEX}cu126"
    else:
        line += f"torch --index-url {_INDEX}cu130"
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, for which this torch "
        f"({version}) has no kernels ({' '.join(kernels) or 'none'}): all work on it ends with "
        f"'no kernel image is available for execution on the device'; to use the card: {line}"
    )


def cpu_build_message(version: str, system: str) -> str:
    """The warning and the pip line of the platform."""
    plain = version.partition("+")[0]
    line = f"pip install --force-reinstall torch=={plain}"
    if system == "Windows":  # PyPI's torch for Windows has no CUDA
        line += f" --index-url {_INDEX}cu130"
    return (
        f"an NVIDIA card is present but this torch ({version}) is a CPU build, so training will "
        f"run on the CPU; to use the card: {line}"
    )


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
