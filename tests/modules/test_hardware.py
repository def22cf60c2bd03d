import logging

import pytest
import torch

from modules import hardware
from modules.hardware import cpu_build_message, precision_fault, warn_of_cpu_build


@pytest.fixture
def machine(monkeypatch):
    """Sets what torch says of the machine."""

    def be(*, cuda=None, accelerator=None, built_for=None, nvidia_smi=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
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
    ],
)
def test_a_cpu_build_beside_a_card_is_said(machine, monkeypatch, facts, warns):
    machine(**facts)
    said = []
    monkeypatch.setattr(hardware.logger, "warning", lambda text, *args: said.append(text % args))
    warn_of_cpu_build()
    assert bool(said) == warns
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
