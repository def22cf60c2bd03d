import logging

import pytest
import torch

from modules import hardware
from modules.hardware import (
    cpu_build_message,
    has_kernels,
    kernel_message,
    precision_fault,
    warn_of_unfit_build,
)


@pytest.fixture
def machine(monkeypatch):
    """Sets what torch says of the machine."""

    def be(*, cuda=None, accelerator=None, built_for=None, nvidia_smi=None, kernels=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "NVIDIA T4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: cuda)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))
        present = cuda is not None if accelerator is None else accelerator
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: present)
        monkeypatch.setattr(torch.version, "cuda", built_for)
        monkeypatch.setattr(hardware.shutil, "which", lambda name: nvidia_smi)

    return be


def test_precisions(machine):
    machine()
    assert precision_fault("no") is None
    assert precision_fault("bf16") is None
    assert precision_fault("fp16") == (
        "train.mixed_precision: fp16 needs a GPU and there is none here; use bf16 or no"
    )
    machine(cuda=(7, 5))
    assert precision_fault("fp16") is None
    assert precision_fault("bf16") == (
        "train.mixed_precision: bf16 is not supported by NVIDIA T4; use fp16"
    )
    machine(cuda=(8, 0))
    assert precision_fault("bf16") is None


@pytest.mark.parametrize(
    ("facts", "warns"),
    [
        ({"nvidia_smi": "/usr/bin/nvidia-smi"}, True),
        ({}, False),
        ({"nvidia_smi": "/usr/bin/nvidia-smi", "built_for": "12.8"}, False),
        ({"nvidia_smi": "/usr/bin/nvidia-smi", "accelerator": True}, False),
        ({"cuda": (7, 5), "built_for": "13.0", "kernels": ("sm_75", "sm_80")}, False),
        ({"cuda": (7, 5), "built_for": "13.0", "kernels": ("sm_80",)}, True),
    ],
)
def test_a_build_that_does_not_fit_the_card_is_said(machine, monkeypatch, facts, warns):
    machine(**facts)
    said = []
    monkeypatch.setattr(hardware.logger, "warning", lambda text, *args: said.append(text % args))
    warn_of_unfit_build()
    assert len(said) == warns  # of two equal cards once
    assert logging.getLogger("modules.hardware") is hardware.logger


def test_the_pip_line_fits_the_platform():
    begin = (
        "an NVIDIA card is present but this torch (2.13.0+cpu) is a CPU build, so training will "
        "run on the CPU; to use the card: pip install --force-reinstall torch==2.13.0"
    )
    assert cpu_build_message("2.13.0+cpu", "Linux") == begin
    assert cpu_build_message("2.13.0+cpu", "Windows").startswith(
        f"{begin} --index-url https://download.pytorch.org/whl/cu"
    )


CUDA_126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "kernels", "expected"),
    [
        ((8, 9), CUDA_126, True),  # by sm_86
        ((6, 1), CUDA_126, True),
        ((6, 1), CUDA_130, False),
        ((12, 0), CUDA_126, False),
        ((12, 1), CUDA_130, True),
        ((13, 0), CUDA_130, True),  # translated from compute_120
        ((11, 0), CUDA_130, False),  # sm_100 is of another major version
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((8, 0), ["sm_86"], False),
        ((8, 0), [], False),
    ],
)
def test_which_cards_a_build_has_kernels_for(capability, kernels, expected):
    assert has_kernels(capability, kernels) == expected


def test_no_kernel_image_is_explained():
    old = kernel_message("NVIDIA GeForce GTX 1080", (6, 1), ["sm_75"], "2.13.0+cu130")
    assert old.startswith(
        "NVIDIA GeForce GTX 1080 has compute capability 6.1, for which this torch (2.13.0+cu130) "
        "has no kernels (sm_75): all work on it ends with 'no kernel image is available"
    )
    index = "--index-url https://download.pytorch.org/whl/"
    assert old.endswith(f": pip install --force-reinstall torch==2.13.0 {index}cu126")
    new = kernel_message("NVIDIA GeForce RTX 5090", (12, 0), ["sm_90"], "2.6.0+cu124")
    assert new.endswith(f": pip install --force-reinstall torch {index}cu130")
