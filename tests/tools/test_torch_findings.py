"""Runs on the CPU; a driver is played by a program of its name."""

import sys

import pytest
import torch

from tools.findings import Finding
from tools.torch_findings import find_attention, find_driver, find_torch, find_xformers

needs_cpu_build = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program `nvidia-smi` first in the path."""
    if sys.platform == "win32":
        pytest.skip("a shell script")

    def put(script: str) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


def test_the_driver_names_its_cards(nvidia_smi):
    nvidia_smi("echo 'NVIDIA RTX A6000, 570.1, 49140 MiB'; echo 'NVIDIA T4, 570.1, 15360 MiB'")
    assert list(find_driver()) == [
        Finding("ok", "driver", "570.1, NVIDIA RTX A6000, 49140 MiB"),
        Finding("ok", "driver", "570.1, NVIDIA T4, 15360 MiB"),
    ]


def test_a_driver_that_fails(nvidia_smi):
    nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    (found,) = find_driver()
    assert found.state == "problem"
    assert found.text.endswith("NVML: Driver/library version mismatch")


def test_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [one.state for one in find_driver()] == ["ok"]


@needs_cpu_build
def test_a_cpu_build_beside_a_card_is_a_problem(nvidia_smi, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    nvidia_smi("true")
    torch_is, unfit, device = find_torch()
    assert torch_is == Finding("ok", "torch", f"{torch.__version__}, built for CPU only")
    assert unfit.state == "problem"
    assert unfit.text.startswith("an NVIDIA card is present but this torch (")
    assert unfit.mend.startswith("pip install --force-reinstall torch==")
    assert device.state == "warning"


@needs_cpu_build
@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("exit 9", "warning", "CPU, training is slow; CUDA says: "),
        ("echo 'NVIDIA T4, 400.1, 15360 MiB'", "problem", "; see the driver's version and CUDA_V"),
    ],
)
def test_a_build_with_cuda_that_finds_no_card(nvidia_smi, monkeypatch, script, state, words):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    nvidia_smi(script)
    found = list(find_torch())[-1]
    assert (found.name, found.state) == ("device", state)
    assert words in found.text


@needs_cpu_build
def test_attention_kernels_are_tried():
    (found,) = find_attention()
    assert found.text.startswith("sdpa on cpu: ")
    assert found.text.endswith("math")
    assert "cudnn" not in found.text
    (found,) = find_xformers()
    assert found.state == "ok"
    assert found.text.endswith("sdpa is used")
